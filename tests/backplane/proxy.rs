//! A TCP proxy in front of a server, which a test tells to cut or to hold.
//!
//! In: an address to forward to. Out: an address of its own. Invariant: bytes are forwarded in order or not at all.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// See the file's header.
pub(crate) struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    streams: Mutex<Vec<TcpStream>>,
    /// Nothing is forwarded and nobody is told.
    is_held: AtomicBool,
    delay_us: AtomicU64,
    is_over: AtomicBool,
}

impl Proxy {
    pub(crate) fn new(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared {
            target: target.into(),
            streams: Mutex::default(),
            is_held: AtomicBool::new(false),
            delay_us: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.is_over.load(Ordering::Relaxed) {
                    return;
                }
                accepting.join(client);
            }
        });
        Proxy { address, shared }
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    /// Cuts all connections that there are.
    pub(crate) fn cut(&self) {
        for stream in self.shared.streams.lock().expect("not poisoned").drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// While held, connections stay and nothing gets through.
    pub(crate) fn hold(&self, held: bool) {
        self.shared.is_held.store(held, Ordering::Relaxed);
    }

    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.cut();
        // The listener looks once more.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(&self.target) else { return };
        let both = [client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone()];
        let [Ok(a), Ok(b), Ok(kept_a), Ok(kept_b)] = both else { return };
        self.streams.lock().expect("not poisoned").extend([kept_a, kept_b]);
        for (from, to) in [(client, b), (server, a)] {
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.forward(from, to));
        }
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            std::thread::sleep(Duration::from_micros(self.delay_us.load(Ordering::Relaxed)));
            while self.is_held.load(Ordering::Relaxed) && !self.is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
            }
            if to.write_all(&buffer[..bytes]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
