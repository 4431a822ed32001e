//! Sends webhooks as `EspoCRM` writes them, over connections that stay open, and counts what is answered.
//!
//! One thread, no allocation a request: each connection has its request ready and only writes the ids into it.
//! Without `rate` the loop is closed (each connection sends when it is answered), with it open (requests fall due
//! whether or not earlier ones are answered). Every run ends by itself. Prints one line of JSON.

mod arguments;
mod connection;
mod request;
mod run;
mod tally;

use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = arguments::Arguments::parse(std::env::args().skip(1));
    let outcome = outcome.and_then(|arguments| run::run(&arguments).map_err(|error| format!("run: {error}")));
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("load: {message}");
            ExitCode::from(2)
        }
    }
}
