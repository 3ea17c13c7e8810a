//! A batch to the subscribers of one thread: the send loop that is measured.
//!
//! In: a [`Batch`]. Out: one SEND (or send()) of a whole write for each subscriber that it is for.
//!
//! Invariant: the bytes of a batch outlive their sends, since every SEND carries MSG_DONTWAIT and is over when its
//! submission returns.
use std::io;
use std::mem;
use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use crate::Mode;
use crate::batch::Batch;
use crate::descriptor::{close, send};
use crate::floor::{Floor, Kind, NOBODY, user_data};

impl Floor {
    /// Sends a batch to whom it is for; returns when the kernel is done with its bytes.
    pub(crate) fn deliver(&mut self, batch: &Batch) -> io::Result<()> {
        for write in &batch.broadcasts {
            let subscribers = mem::take(&mut self.subscribers);
            let sent = self.send_all(subscribers.iter().map(|fd| (*fd, &batch.bytes[write.clone()])));
            self.subscribers = subscribers;
            self.drop_failed();
            sent?;
        }
        if batch.direct.is_empty() {
            return Ok(());
        }
        let numbered = mem::take(&mut self.numbered);
        // Those of other threads, and those that are gone, have no descriptor here.
        let known = |number: u32| numbered.get(number as usize).copied().filter(|fd| *fd != NOBODY);
        let writes =
            batch.direct.iter().filter_map(|(number, write)| Some((known(*number)?, &batch.bytes[write.clone()])));
        let sent = self.send_all(writes);
        self.numbered = numbered;
        self.drop_failed();
        sent
    }

    fn send_all<'a>(&mut self, writes: impl Iterator<Item = (RawFd, &'a [u8])>) -> io::Result<()> {
        match self.options.mode {
            Mode::Ring => self.send_on_ring(writes),
            Mode::Send => {
                for (fd, bytes) in writes {
                    match send(fd, bytes) {
                        Ok(count) if count == bytes.len() => {}
                        outcome => {
                            self.short_writes += u64::from(matches!(outcome, Ok(_) | Err(libc::EAGAIN)));
                            self.failed.push(fd);
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn send_on_ring<'a>(&mut self, writes: impl Iterator<Item = (RawFd, &'a [u8])>) -> io::Result<()> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let mut queued = 0;
        let mut outcome = Ok(());
        for (fd, bytes) in writes {
            let Ok(length) = u32::try_from(bytes.len()) else {
                outcome = Err(io::Error::other("a write of 4 GiB"));
                break;
            };
            let entry = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), length)
                .flags(flags)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(user_data(Kind::Send, fd));
            self.push(&entry)?;
            queued += 1;
            if queued == self.options.batch {
                queued = 0;
                self.submit_all()?;
                self.reap();
            }
        }
        // No entry that points into the batch may outlive this call, whatever happened.
        self.submit_all()?;
        self.reap();
        outcome
    }

    /// Closes what did not take a whole write.
    fn drop_failed(&mut self) {
        if self.failed.is_empty() {
            return;
        }
        let mut failed = mem::take(&mut self.failed);
        failed.sort_unstable();
        failed.dedup();
        self.subscribers.retain(|fd| failed.binary_search(fd).is_err());
        for fd in self.numbered.iter_mut().filter(|fd| failed.binary_search(fd).is_ok()) {
            *fd = NOBODY;
        }
        for &fd in &failed {
            close(fd);
        }
        eprintln!("ringway-floor: {} subscribers closed; short writes so far: {}", failed.len(), self.short_writes);
    }
}
