//! Work on what strangers wrote runs on a thread of its own: with a stack that its limits are made for, whatever thread the caller is
//! on, and with an end, since a process that never returns cannot say what is wrong.

use std::sync::mpsc::{channel, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// The deepest that the limits of `template_source` and `values` let anything nest is 2,000 levels in the compiler and some ten thousand
/// in values, which take 1 to 4 kB each. Pages that are not touched are never allocated.
const STACK: usize = 256 << 20;

/// The wait is counted in slices of this length: while the whole process is stopped (Ctrl-Z, a sleeping laptop) one passes at most.
const SLICE: Duration = Duration::from_millis(50);

/// Runs `work` for at most `seconds`; None when it takes longer. Then its thread is left behind, and ends with the process.
pub fn run<T: Send + 'static>(seconds: u64, work: impl FnOnce() -> T + Send + 'static) -> Result<Option<T>, String> {
    let (done, result) = channel();
    let body = move || {
        let _ = done.send(work());
    };
    let thread = thread::Builder::new().stack_size(STACK).spawn(body).map_err(|e| format!("no thread could be started ({e})"))?;
    let slices = seconds.saturating_mul(20);
    for _ in 0..slices {
        match result.recv_timeout(SLICE) {
            Ok(value) => {
                // The thread has no more to do than to give its stack back.
                let _ = thread.join();
                return Ok(Some(value));
            }
            Err(RecvTimeoutError::Timeout) => {}
            // A panic: its message is the thread's.
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(payload) => std::panic::resume_unwind(payload),
                Ok(()) => return Err("no result".to_owned()),
            },
        }
    }
    Ok(None)
}
