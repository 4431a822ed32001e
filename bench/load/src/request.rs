//! A request that is built once; only the ids in it are written anew.

use std::net::SocketAddr;

/// Bytes of a record, as the issue of a CRM's record goes.
const RECORD_BYTES: usize = 600;
/// Digits of an id: 8 of the run, 9 of the count.
const ID_DIGITS: usize = 17;
const PATH: &str = "/vmh/webhook/beteiligte/create";

/// A record as PHP's `json_encode` writes it: ASCII only, `\/` and `\uXXXX`, no blanks.
const BEFORE_ID: &str = r#"{"id":""#;
const AFTER_ID: &str = concat!(
    r#"","name":"Zo\u00eb M\u00fcller","deleted":false,"firstName":"Zo\u00eb","lastName":"M\u00fcller","#,
    r#""title":null,"status":"New","website":"https:\/\/example.com\/7?a=1&b=<2>","#,
    r#""addressStreet":"1 High St\nFloor 2","addressCountry":null,"emailAddress":"u7@example.com","#,
    r#""emailAddressData":[{"emailAddress":"u7@example.com","primary":true,"optOut":false}],"#,
    r#""phoneNumberData":[],"tagList":["a\/b","\ud83d\ude00"],"createdAt":"2026-02-07 10:00:00","#,
    r#""assignedUserName":"Sales User","teamsIds":["t1"],"description":"\"quoted\" \\ text\t"#,
);
const END: &str = r#""}"#;

/// Head and body, and where the ids stand.
pub(crate) struct Request {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Request {
    /// A request of so many records.
    pub(crate) fn new(address: SocketAddr, batch: usize) -> Self {
        let padding = RECORD_BYTES - BEFORE_ID.len() - ID_DIGITS - AFTER_ID.len() - END.len();
        let length = batch * RECORD_BYTES + (batch - 1) + 2;
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        let mut bytes = head.into_bytes();
        let (start, mut places) = (bytes.len(), Vec::with_capacity(batch));
        for index in 0..batch {
            bytes.push(if index == 0 { b'[' } else { b',' });
            bytes.extend_from_slice(BEFORE_ID.as_bytes());
            places.push(bytes.len());
            bytes.extend_from_slice(&[b'0'; ID_DIGITS]);
            bytes.extend_from_slice(AFTER_ID.as_bytes());
            bytes.resize(bytes.len() + padding, b'x');
            bytes.extend_from_slice(END.as_bytes());
        }
        bytes.push(b']');
        assert_eq!(bytes.len() - start, length, "the head announces the body");
        Self { bytes, places }
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Records.
    pub(crate) fn batch(&self) -> usize {
        self.places.len()
    }

    /// Gives the record at `index` the id of a run and a count.
    pub(crate) fn set_id(&mut self, index: usize, nonce: u32, count: u64) {
        let place = self.places[index];
        let id = &mut self.bytes[place..place + ID_DIGITS];
        write_hex(&mut id[..8], u64::from(nonce));
        write_hex(&mut id[8..], count);
    }
}

fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_into_their_records() {
        let mut request = Request::new(SocketAddr::from(([127, 0, 0, 1], 80)), 2);
        request.set_id(0, 0xab, 0x12);
        request.set_id(1, 0xab, u64::from(u32::MAX));
        let text = String::from_utf8(request.bytes().to_vec()).expect("ASCII");
        let body = text.split("\r\n\r\n").nth(1).expect("a body");
        assert_eq!(body.len(), 2 * RECORD_BYTES + 3);
        assert_eq!(&body[..26], r#"[{"id":"000000ab000000012""#);
        assert_eq!(&body[602..627], r#"{"id":"000000ab0ffffffff""#);
        assert!(text.contains("Content-Length: 1203\r\n"));
    }
}
