//! Failures on demand, in debug builds only: a request whose id begins with `drill:` does inside the model's thread what a model
//! that broke out or broke down would do.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, getppid, kill_process, test_kill_process};

const PREFIX: &str = "drill:";

/// Does what the id asks for; words about what came of it, for an id that is a drill.
pub(crate) fn act(id: &str) -> Option<String> {
    let (name, argument) = id.strip_prefix(PREFIX).map(|rest| rest.split_once(' ').unwrap_or((rest, "")))?;
    let outcome = match name {
        // Rust's handler takes the first one for a stack overflow and waits for the next.
        "segfault" => loop {
            let _ = kill_process(getpid(), Signal::SEGV);
            thread::sleep(Duration::from_millis(5));
        },
        "hang" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        "memory" => eat(),
        "read" => File::open(argument).map(drop),
        "write" => OpenOptions::new().create(true).append(true).open(argument).map(drop),
        "list" => std::fs::read_dir(argument).map(drop),
        "unix" => UnixStream::connect(argument).map(drop),
        "tcp" => TcpStream::connect(argument).map(drop),
        "udp" => UdpSocket::bind(argument).map(drop),
        "listen" => TcpListener::bind(argument).map(drop),
        "exec" => Command::new(argument).status().map(drop),
        "signal" => getppid().map_or(Ok(()), |parent: Pid| test_kill_process(parent).map_err(io::Error::from)),
        _ => Err(io::Error::other("no such drill")),
    };
    Some(format!("{name}: {}", outcome.map_or_else(|e| e.kind().to_string(), |()| "done".to_owned())))
}

/// Takes memory until there is none.
fn eat() -> io::Result<()> {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(vec![1; 16 << 20]);
    }
}
