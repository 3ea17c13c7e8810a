//! Set-up: a server with connected clients gets SIGTERM or SIGINT.
//! Claim: every client is closed with 3001, which SDKs answer by reconnecting; the process ends with exit code 0, also
//! when a client never answers the Close; the port is free afterwards.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use ringway_tests::{Client, Encoding, Server};

#[test]
fn clients_are_told_to_come_back() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&["--shards", "2"]);
        let mut clients: Vec<Client> = (0..20)
            .map(|n| Client::connect_as(&server, if n % 2 == 0 { Encoding::Json } else { Encoding::Protobuf }))
            .collect();
        clients[0].subscribe("any");
        server.signal(signal);
        for client in &mut clients {
            let close = client.expect_close();
            assert_eq!((close.code, close.reason.as_str()), (Some(3001), "shutdown"), "SIG{signal}");
        }
        assert!(server.wait_exit().success(), "SIG{signal}");
        assert!(TcpStream::connect(server.client).is_err(), "the port is free");
    }
}

#[test]
fn a_client_that_never_answers_does_not_hold_the_process() {
    let mut server = Server::start(&["--set", "limits.close_timeout_ms=1000"]);
    let silent = Client::connect(&server);
    let unauthenticated = Client::open(server.client, Encoding::Json);
    let half_open = TcpStream::connect(server.client).expect("connect");
    let start = Instant::now();
    let status = server.terminate();
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    drop((silent, unauthenticated, half_open));
}
