//! The channel between the halves: length-delimited messages over a Unix socket pair, files beside them.
//!
//! Both ends are the same binary. A file travels with the first byte of its message (`SCM_RIGHTS`), so files come out in the
//! order of the messages that carry one.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use prost::Message;
use prost::encoding::decode_varint;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Longest message; windows with large confusion matrices are the longest there are.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
const MAX_DELIMITER_BYTES: usize = 10;
/// A listening message carries most.
const FILES_PER_MESSAGE: usize = 2;
const FILES_PER_READ: usize = 4;
const READ_BYTES: usize = 16 << 10;

/// Sends a message, with the files that travel beside it.
pub(crate) fn send(socket: &UnixStream, message: &impl Message, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = message.encode_length_delimited_to_vec();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("no room for the files beside the message"));
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let sent = retry_on_intr(|| sendmsg(socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL))?;
        control.clear();
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// The receiving side of one end.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: UnixStream,
    bytes: Vec<u8>,
    files: VecDeque<OwnedFd>,
}

impl Receiver {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket, bytes: Vec::new(), files: VecDeque::new() }
    }

    /// Waits for the next message; `None` when the other end has closed.
    pub(crate) fn receive<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        loop {
            if let Some(length) = self.complete()? {
                let message = self.bytes.get(..length).unwrap_or_default();
                let message = M::decode_length_delimited(message).map_err(invalid)?;
                self.bytes.drain(..length);
                return Ok(Some(message));
            }
            if self.read()? == 0 {
                return if self.bytes.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The next file that came with the message received last, where its kind carries some.
    pub(crate) fn take_file(&mut self) -> Option<OwnedFd> {
        self.files.pop_front()
    }

    /// Bytes of the first message with its delimiter, once it is there as a whole.
    fn complete(&self) -> io::Result<Option<usize>> {
        let delimiter = self.bytes.iter().position(|byte| byte & 0x80 == 0).map(|last| last + 1);
        let Some(delimiter) = delimiter.filter(|&n| n <= MAX_DELIMITER_BYTES) else {
            return if self.bytes.len() < MAX_DELIMITER_BYTES { Ok(None) } else { Err(invalid("malformed length")) };
        };
        let length = decode_varint(&mut self.bytes.as_slice()).map_err(invalid)?;
        let length = usize::try_from(length).ok().filter(|&n| n <= MAX_MESSAGE_BYTES).ok_or_else(|| invalid("message too long"))?;
        Ok((self.bytes.len() >= delimiter + length).then_some(delimiter + length))
    }

    fn read(&mut self) -> io::Result<usize> {
        let start = self.bytes.len();
        self.bytes.resize(start + READ_BYTES, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_PER_READ))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.bytes.get_mut(start..).unwrap_or_default();
        let received = retry_on_intr(|| recvmsg(&self.socket, &mut [IoSliceMut::new(room)], &mut control, RecvFlags::CMSG_CLOEXEC));
        let count = received.as_ref().map_or(0, |r| r.bytes);
        self.bytes.truncate(start + count);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files);
            }
        }
        received.map_err(io::Error::from)?;
        Ok(count)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use pleach_proto::runtime::{Load, Request, request};

    use super::*;

    fn load(id: u64, digest: String) -> Request {
        Request { id, request: Some(request::Request::Load(Load { bundle_digest: digest })) }
    }

    #[test]
    fn messages_and_their_files_arrive_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut files = Vec::new();
        for text in ["first", "second"] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            files.push(file);
        }
        let long = "x".repeat(100_000);
        let sender = std::thread::spawn(move || {
            send(&here, &load(1, String::new()), &[files[0].as_fd()]).unwrap();
            send(&here, &load(2, long), &[]).unwrap();
            send(&here, &load(3, String::new()), &[files[1].as_fd()]).unwrap();
        });
        let mut receiver = Receiver::new(there);
        for (id, expected) in [(1, Some("first")), (2, None), (3, Some("second"))] {
            assert_eq!(receiver.receive::<Request>().unwrap().unwrap().id, id);
            if let Some(expected) = expected {
                let mut file = std::fs::File::from(receiver.take_file().unwrap());
                file.rewind().unwrap();
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, expected);
            }
        }
        sender.join().unwrap();
        assert!(receiver.receive::<Request>().unwrap().is_none());
    }

    #[test]
    fn refuses_lengths_that_no_message_has() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(&[0xff, 0xff, 0xff, 0xff, 0x7f]).unwrap();
        let error = Receiver::new(there).receive::<Request>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
