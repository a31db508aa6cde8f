//! A run in a process of its own: this test binary, once more.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use orbit_etl::ErrorKind;
use serde_json::{Value, json};

use crate::job::Job;
use crate::paced::Pace;

const TASK: &str = "ORBIT_CRASH_CHILD";
const SIGABRT: i32 = 6;
const COMPLETED: i32 = 0;
const FENCED: i32 = 40;
const FAILED: i32 = 41;
/// A child that has nothing to say for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The child's side; as a test of its own it does nothing.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Value = serde_json::from_str(&task).unwrap();
    // Nobody waits for a child that hangs.
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        eprintln!("the child hangs");
        std::process::abort();
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let pace = Pace::holding_after(task["hold_after"].as_u64().unwrap());
        let mut acknowledged = pace.acknowledged();
        tokio::spawn(async move {
            while acknowledged.changed().await.is_ok() {
                println!("\nacknowledged {}", *acknowledged.borrow_and_update());
            }
        });
        let pipeline = Job::from_json(&task).pipeline(&pace);
        std::thread::spawn(move || {
            let mut line = String::new();
            if std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                pace.release();
            }
        });
        pipeline.run().await
    });
    let code = match ended {
        Ok(_) => COMPLETED,
        Err(error) => {
            eprintln!("{}", error.report());
            if error.kind() == ErrorKind::Fenced { FENCED } else { FAILED }
        }
    };
    std::process::exit(code);
}

/// The parent's hold on a child. It dies with this.
pub(super) struct Run {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
}

impl Run {
    /// Starts a load; it stops reading after `hold_after` epochs until it is released.
    pub(super) fn start(job: &Job, failpoint: Option<&str>, hold_after: Option<u64>) -> Self {
        let mut task = job.to_json();
        task["hold_after"] = json!(hold_after.unwrap_or(u64::MAX));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["crash::child::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(TASK, task.to_string())
            .env_remove("ORBIT_FAILPOINT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(failpoint) = failpoint {
            command.env("ORBIT_FAILPOINT", failpoint);
        }
        let mut child = command.spawn().unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            stderr: child.stderr.take().unwrap(),
            child,
        }
    }

    /// Waits until it has acknowledged so many epochs.
    pub(super) fn wait_for_epoch(&mut self, epoch: u64) -> Result<(), String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.stdout.read_line(&mut line).map_err(|e| e.to_string())? == 0 {
                return Err(format!("it ended before epoch {epoch}"));
            }
            let known = line.trim().strip_prefix("acknowledged ").and_then(|n| n.parse::<u64>().ok());
            if known.is_some_and(|known| known >= epoch) {
                return Ok(());
            }
        }
    }

    pub(super) fn release(&mut self) {
        // It may be gone already.
        let _ = self.stdin.write_all(b"go\n");
    }

    /// Sends it a signal: `STOP`, `CONT`, `KILL`.
    pub(super) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).output();
        assert!(sent.is_ok(), "there is no `kill` to send {name} with");
    }

    fn wait(&mut self) -> Result<(ExitStatus, String), String> {
        // What it prints must be taken, or it waits for that.
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).map_err(|e| e.to_string())?;
        text.clear();
        self.stderr.read_to_string(&mut text).map_err(|e| e.to_string())?;
        let status = self.child.wait().map_err(|e| e.to_string())?;
        Ok((status, text.trim().to_owned()))
    }

    /// That it dies at its failpoint.
    pub(super) fn aborts(mut self) -> Result<(), String> {
        match self.wait()? {
            (status, text) if status.signal() != Some(SIGABRT) => {
                Err(format!("the failpoint was never reached: {status}, {text}"))
            }
            (_, text) if text.contains("the child hangs") => Err(text),
            _ => Ok(()),
        }
    }

    /// That it is told that a newer run has taken over.
    pub(super) fn ends_fenced(mut self) -> Result<(), String> {
        match self.wait()? {
            (status, _) if status.code() == Some(FENCED) => Ok(()),
            (status, text) => Err(format!("the older run was not fenced: {status}, {text}")),
        }
    }

    /// That it is gone, by a signal, fenced, or completed; not failed.
    pub(super) fn ends_without_error(mut self) -> Result<(), String> {
        match self.wait()? {
            (status, text) if status.code() == Some(FAILED) || status.signal() == Some(SIGABRT) => {
                Err(format!("the run failed: {status}, {text}"))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
