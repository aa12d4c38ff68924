//! `weft-crr`: how many TCP connections a second a way carries, when each is opened, asks for a byte, gets one and is closed (connect,
//! request, response).
//!
//! The server ends each connection first, so that it, and nobody on the way, keeps what is left of it (TIME-WAIT).
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Threads of the server, which have a connection each.
const SERVERS: usize = 16;
/// Of kept connections, so many are looked at in a millisecond.
const KEPT_LOOKS: usize = 512;

/// Measures TCP connections a second.
#[derive(Debug, Parser)]
#[command(name = "weft-crr", version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Answer, until killed
    Serve { address: SocketAddrV4 },
    /// Keep every connection until the other side ends it, until killed
    Keep { address: SocketAddrV4 },
    /// Ask, and print how often there was an answer, as JSON
    Run {
        address: SocketAddrV4,
        /// How many ask at once
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
        clients: u16,
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
}

/// What one client came to.
#[derive(Debug, Default)]
struct Tally {
    answers: u64,
    failed: u64,
    error: Option<io::Error>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().role {
        Role::Serve { address } => serve(address),
        Role::Keep { address } => keep(address),
        Role::Run { address, clients, seconds } => run(address, clients, Duration::from_secs(seconds)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-crr: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: SocketAddrV4) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    // Whoever started this process waits for this line.
    println!("ready");
    thread::scope(|scope| {
        for _ in 0..SERVERS {
            scope.spawn(|| {
                // Who goes away before the answer is no reason to stop.
                listener.incoming().flatten().for_each(|stream| drop(answer(stream)));
            });
        }
    });
    Ok(())
}

fn keep(address: SocketAddrV4) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    println!("ready: {}", listener.local_addr()?);
    let (mut kept, mut at) = (Vec::<TcpStream>::new(), 0);
    loop {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            kept.push(stream);
        }
        // A few at a time, whether they are still wanted.
        for _ in 0..KEPT_LOOKS.min(kept.len()) {
            at = if at == 0 { kept.len() - 1 } else { at.min(kept.len()) - 1 };
            if !matches!(kept[at].peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock) {
                kept.swap_remove(at);
            }
            if kept.is_empty() {
                break;
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut request = [0];
    stream.read_exact(&mut request)?;
    stream.write_all(&request)
}

fn run(address: SocketAddrV4, clients: u16, duration: Duration) -> io::Result<()> {
    let start = Instant::now();
    let end = start + duration;
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(|| ask_until(address, end))).collect();
        clients.into_iter().map(|client| client.join().unwrap_or_default()).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let answers: u64 = tallies.iter().map(|tally| tally.answers).sum();
    let failed: u64 = tallies.iter().map(|tally| tally.failed).sum();
    let error = tallies.into_iter().find_map(|tally| tally.error).map(|error| error.to_string());
    let found = serde_json::json!({
        "answers": answers, "per_second": answers as f64 / seconds, "failed": failed, "error": error, "seconds": seconds
    });
    println!("{found}");
    Ok(())
}

fn ask_until(address: SocketAddrV4, end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        match ask(address) {
            Ok(()) => tally.answers += 1,
            Err(error) => {
                tally.failed += 1;
                tally.error.get_or_insert(error);
            }
        }
    }
    tally
}

fn ask(address: SocketAddrV4) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address.into(), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"?")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer == b"?" { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}
