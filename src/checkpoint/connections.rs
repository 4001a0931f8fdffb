//! Whether a dump needs CRIU's network lock.
//!
//! CRIU drops every packet of the container's network namespace from before the dump to after it
//! (network_lock in criu/net.c), so that no segment reaches a connection that is in repair mode
//! (criu/sk-tcp.c): without the lock the kernel would answer for it. It does that by a dozen runs
//! of iptables programs, which take longer than the dump of a small container. Where no TCP
//! connection is, there is nothing to repair: sockets that listen, are closed or know datagrams
//! only are dumped without that mode, and a connection that arrives now stays with the live
//! container, which the lock would have made wait.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};

use crate::proc::Proc;
use crate::sys::pid::Pid;

/// Whoever has larger tables has connections: they are not read to their end in the freeze.
const TABLE_LIMIT: u64 = 1 << 20;

/// Whether one of these processes is in a network namespace with a TCP connection. What cannot be
/// read counts as one.
pub(super) fn need_lock(processes: &[Pid]) -> bool {
    let mut seen = HashSet::new();
    processes.iter().any(|pid| match Proc::of(*pid).namespace("net") {
        Ok(namespace) => seen.insert(namespace) && has_connections(*pid).unwrap_or(true),
        // One that has ended and waits for its parent has no namespace and no socket.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    })
}

fn has_connections(pid: Pid) -> io::Result<bool> {
    if !has_sockets(pid) {
        return Ok(false);
    }
    let net = Proc::of(pid).at("net");
    for table in ["tcp", "tcp6"] {
        match File::open(net.join(table)) {
            Ok(file) if any_connected(&file)? => return Ok(true),
            Ok(_) => {}
            // A kernel without IPv6.
            Err(error) if table == "tcp6" && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether there is a TCP socket that listens or is connected. The kernel counts them, while for the
/// tables below it walks all connections of the machine, which takes milliseconds of the pause.
fn has_sockets(pid: Pid) -> bool {
    ["sockstat", "sockstat6"].iter().any(|counts| {
        let text = fs::read_to_string(Proc::of(pid).at("net").join(counts));
        // A kernel without IPv6.
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match text {
            Err(error) if *counts == "sockstat6" && missing(&error) => false,
            text => text.ok().and_then(|text| sockets_in_use(&text)) != Some(0),
        }
    })
}

/// The number in a line `TCP: inuse 5 …` or `TCP6: inuse 5` (net/ipv4/proc.c, net/ipv6/proc.c).
fn sockets_in_use(counts: &str) -> Option<u64> {
    let mut lines = counts.lines().filter_map(|line| line.split_once(": "));
    let (_, tcp) = lines.find(|(name, _)| *name == "TCP" || *name == "TCP6")?;
    let mut words = tcp.split_ascii_whitespace();
    words.find(|word| *word == "inuse")?;
    words.next()?.parse().ok()
}

/// Whether a table of proc_pid_net(5) has a socket that is connected, becomes so or ends being so.
/// A table that is too long, or that is not understood, has.
fn any_connected(table: impl Read) -> io::Result<bool> {
    /// TIME_WAIT, CLOSE and LISTEN (include/net/tcp_states.h): the first is no socket any more.
    const UNCONNECTED: [&str; 3] = ["06", "07", "0A"];
    let mut table = BufReader::new(table.take(TABLE_LIMIT));
    let mut line = String::new();
    table.read_line(&mut line)?;
    loop {
        line.clear();
        if table.read_line(&mut line)? == 0 {
            return Ok(table.get_ref().limit() == 0);
        }
        let state = line.split_ascii_whitespace().nth(3);
        if !state.is_some_and(|state| UNCONNECTED.contains(&state)) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n";

    fn row(state: &str) -> String {
        format!("   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000\n")
    }

    #[test]
    fn only_some_states_are_connections() {
        for (state, connected) in
            [("0A", false), ("07", false), ("06", false), ("01", true), ("02", true), ("0C", true)]
        {
            assert_eq!(
                any_connected((HEAD.to_owned() + &row(state)).as_bytes()).unwrap(),
                connected,
                "{state}"
            );
        }
        assert!(!any_connected(HEAD.as_bytes()).unwrap());
        assert!(any_connected(format!("{HEAD}cut\n").as_bytes()).unwrap());
    }

    #[test]
    fn the_kernel_counts_sockets() {
        let counts =
            "sockets: used 47\nTCP: inuse 5 orphan 0 tw 2 alloc 9 mem 0\nUDP: inuse 0 mem 0\n";
        assert_eq!(sockets_in_use(counts), Some(5));
        assert_eq!(sockets_in_use("TCP6: inuse 0\nUDP6: inuse 1\n"), Some(0));
        for other in ["", "UDP: inuse 0\n", "TCP: used 1\n", "TCP: inuse x\n"] {
            assert_eq!(sockets_in_use(other), None, "{other}");
        }
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(has_sockets(Pid::own()));
    }

    #[test]
    fn a_table_without_end_counts_as_connected() {
        let endless = HEAD.as_bytes().chain(io::repeat(b' '));
        assert!(any_connected(endless).unwrap());
        let listening = HEAD.to_owned() + &row("0A").repeat(20_000);
        assert!(any_connected(listening.as_bytes()).unwrap());
    }

    #[test]
    fn a_connection_of_this_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(need_lock(&[Pid::own()]));
    }
}
