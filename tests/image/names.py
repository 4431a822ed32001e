"""A name server for one name, as a cluster's: `names.py ADDRESS NAME IP` answers A queries for NAME with IP, says that
NAME has no other records, and that nothing else exists. Prints each name it is asked for."""

import socket
import struct
import sys

address, name, ip = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((address, 53))
print("listening", flush=True)
while True:
    query, asker = server.recvfrom(512)
    labels, place = [], 12
    while query[place]:
        labels.append(query[place + 1 : place + 1 + query[place]].decode("ascii"))
        place += 1 + query[place]
    question, kind = query[12 : place + 5], struct.unpack("!H", query[place + 1 : place + 3])[0]
    asked = ".".join(labels).lower()
    print(asked, kind, flush=True)
    found = asked == name
    answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + socket.inet_aton(ip) if found and kind == 1 else b""
    flags = 0x8580 if found else 0x8583  # authoritative; NXDOMAIN
    server.sendto(query[:2] + struct.pack("!HHHHH", flags, 1, 1 if answer else 0, 0, 0) + question + answer, asker)
