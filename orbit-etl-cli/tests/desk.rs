//! A folder with files in it, and the command run there.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test gives up.
const LONGEST: Duration = Duration::from_secs(60);

/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(crate) struct Desk {
    dir: TempDir,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A command that goes on.
pub(crate) struct Going {
    child: Option<Child>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orbit-etl"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Runs to its end.
    pub(crate) fn orbit(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// Begins.
    pub(crate) fn start(&self, args: &[&str]) -> Going {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Going { child: Some(child) }
    }

    /// The lines of all data files below a folder, sorted, headers left out.
    pub(crate) fn lines(&self, folder: &str) -> Vec<String> {
        let mut lines = Vec::new();
        collect(&self.path(folder), &mut lines);
        lines.sort();
        lines
    }
}

fn collect(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with(['_', '.']) {
            continue;
        }
        if path.is_dir() {
            collect(&path, lines);
        } else if name.ends_with(".csv") {
            lines.extend(fs::read_to_string(path).unwrap().lines().skip(1).map(str::to_owned));
        }
    }
}

impl Done {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What was printed, if the code is this one.
    pub(crate) fn coded(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:#?}");
        &self.out
    }

    /// The one object that was printed.
    pub(crate) fn json(&self, code: i32) -> Value {
        serde_json::from_str(self.coded(code)).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

impl Going {
    /// Waits until something has happened; a command that ends before fails the test.
    pub(crate) fn until(mut self, what: &str, mut happened: impl FnMut() -> bool) -> Self {
        let begun = Instant::now();
        while !happened() {
            if let Some(status) = self.child().try_wait().unwrap() {
                panic!("ended ({status}) before {what}: {:#?}", self.end());
            }
            assert!(begun.elapsed() < LONGEST, "waited too long until {what}");
            std::thread::sleep(LOOK_EVERY);
        }
        self
    }

    /// Reads standard error up to the line that holds this text.
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        let err = self.child().stderr.take().unwrap();
        let mut lines = BufReader::new(err);
        loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "standard error ended without {text}");
            if line.contains(text) {
                self.child().stderr = Some(lines.into_inner());
                return line;
            }
        }
    }

    pub(crate) fn signal(&mut self, signal: &str) -> &Self {
        let sent = Command::new("kill").args([signal, &self.child().id().to_string()]).status().unwrap();
        assert!(sent.success());
        self
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Done {
        let mut child = self.child.take().unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > LONGEST {
                child.kill().unwrap();
                panic!("waited too long for the end: {:#?}", Done::of(child.wait_with_output().unwrap()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Done::of(child.wait_with_output().unwrap())
    }

    fn child(&mut self) -> &mut Child {
        self.child.as_mut().unwrap()
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
