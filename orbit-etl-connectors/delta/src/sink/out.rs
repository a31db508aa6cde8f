//! Where an encoder's bytes go: a file, or a buffer that is uploaded part by part.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

/// A handle on an output. The encoder writes through one, the writer watches through another.
#[derive(Debug, Clone)]
pub(crate) struct Out(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    body: Body,
    written: u64,
    failure: Option<io::Error>,
}

#[derive(Debug)]
enum Body {
    File(BufWriter<File>),
    Memory(BytesMut),
    Closed,
}

impl Out {
    /// Into a file, through a buffer of that many bytes.
    pub(crate) fn file(file: File, buffer: usize) -> Self {
        Self::new(Body::File(BufWriter::with_capacity(buffer, file)))
    }

    /// Into memory.
    pub(crate) fn memory() -> Self {
        Self::new(Body::Memory(BytesMut::new()))
    }

    fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(State { body, written: 0, failure: None })))
    }

    /// How many bytes were written so far.
    pub(crate) fn written(&self) -> u64 {
        self.lock().written
    }

    /// How many bytes of memory the output itself holds.
    pub(crate) fn held(&self) -> usize {
        match &self.lock().body {
            Body::File(file) => file.capacity(),
            Body::Memory(bytes) => bytes.len(),
            Body::Closed => 0,
        }
    }

    /// The reason of the last failure. The encoder keeps only its text, which says too little.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.lock().failure.take()
    }

    /// A second handle on the file, if there is one.
    pub(crate) fn duplicate(&self) -> io::Result<Option<File>> {
        match &self.lock().body {
            Body::File(file) => file.get_ref().try_clone().map(Some),
            Body::Memory(_) | Body::Closed => Ok(None),
        }
    }

    /// Takes `size` bytes if there are as many.
    pub(crate) fn take_part(&self, size: usize) -> Option<Bytes> {
        match &mut self.lock().body {
            Body::Memory(bytes) if bytes.len() >= size => Some(bytes.split_to(size).freeze()),
            _ => None,
        }
    }

    /// Takes all bytes that are left in memory.
    pub(crate) fn take_rest(&self) -> Bytes {
        match &mut self.lock().body {
            Body::Memory(bytes) => bytes.split().freeze(),
            Body::File(_) | Body::Closed => Bytes::new(),
        }
    }

    /// Ends the output and gives the file back, its buffer written.
    pub(crate) fn into_file(self) -> io::Result<Option<File>> {
        match std::mem::replace(&mut self.lock().body, Body::Closed) {
            Body::File(file) => file.into_inner().map(Some).map_err(io::IntoInnerError::into_error),
            Body::Memory(_) | Body::Closed => Ok(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Out {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        let result = match &mut state.body {
            Body::File(file) => file.write(data),
            Body::Memory(bytes) => {
                bytes.extend_from_slice(data);
                Ok(data.len())
            }
            Body::Closed => Err(io::ErrorKind::BrokenPipe.into()),
        };
        match result {
            Ok(count) => {
                state.written += count as u64;
                Ok(count)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    state.failure = Some(again(&error));
                }
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // The encoder flushes after every row group. The buffer is for just that case, and is
        // written out when the file is closed.
        Ok(())
    }
}

/// Errors of the system can't be cloned.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
