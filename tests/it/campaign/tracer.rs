//! Runs a program under ptrace(2), counts the system calls that it makes itself, and has one go wrong.
//!
//! All threads of the program are followed, and its children until they become another program: what
//! that calls is its own.

use std::collections::{HashMap, HashSet};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::calls::Call;

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The program is killed before it.
    Kill,
    /// Every thread that makes a call stands still for so long.
    Stop(Duration),
    /// The call is not made, and fails.
    Fail(Errno),
    /// Half of what is to be written is.
    ShortWrite,
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    /// The calls, in the order in which they were made.
    pub calls: Vec<Call>,
    /// At which of them the fault was, if it came to that.
    pub struck: Option<Call>,
    /// The exit status, or 128 and the signal.
    pub status: i32,
}

/// After so long a program is taken for one that hangs.
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a command. The fault comes at the first call from number `at` on that it can happen to.
///
/// # Panics
/// When the program is still there after a minute and a half.
pub fn run(command: &Command, fault: Option<(usize, Fault)>) -> Run {
    let root = start(command);
    let mut tracer = Tracer {
        root,
        fault,
        calls: Vec::new(),
        struck: None,
        begun: false,
        entered: HashSet::new(),
        failing: HashMap::new(),
    };
    let status = tracer.follow();
    Run { calls: tracer.calls, struck: tracer.struck, status }
}

/// Starts the program, stopped before its first instruction: a shell stops itself, and becomes it when
/// it goes on.
#[expect(clippy::zombie_processes, reason = "the tracer waits for it, by its number")]
fn start(command: &Command) -> Pid {
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let errors = std::fs::File::create(errors_of()).unwrap();
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).process_group(0);
    let child = shell.spawn().expect("sh can be run");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::__WNOTHREAD;
    assert_eq!(waitpid(pid, Some(flags)), Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)));
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).expect("the program can be traced");
    kill(pid, Signal::SIGCONT).unwrap();
    pid
}

/// Where standard error of the program goes: a container inherits a file, and keeps a pipe open.
pub fn errors_of() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("campaign-{}", std::process::id()))
}

struct Tracer {
    root: Pid,
    fault: Option<(usize, Fault)>,
    calls: Vec<Call>,
    struck: Option<Call>,
    /// Whether the shell has become the program.
    begun: bool,
    /// Who is in a call.
    entered: HashSet<Pid>,
    /// Whose call was taken away, and how it fails.
    failing: HashMap<Pid, Errno>,
}

impl Tracer {
    fn follow(&mut self) -> i32 {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "it hangs: {:?} was struck", self.struck);
            match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Ok(WaitStatus::Exited(pid, status)) if pid == self.root => return status,
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.root => {
                    return 128 + signal as i32;
                }
                Ok(WaitStatus::PtraceSyscall(pid)) => self.at_call(pid),
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => self.at_event(pid, event),
                Ok(WaitStatus::Stopped(pid, signal)) => go_on(pid, Some(signal)),
                // A thread, or a child that has not become a program; a number that came too early.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => panic!("waiting for the program: {errno}"),
            }
        }
    }

    fn at_event(&mut self, pid: Pid, event: i32) {
        if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 {
            if pid == self.root {
                self.begun = true;
                self.entered.insert(pid);
            } else {
                let _ = ptrace::detach(pid, None);
                return;
            }
        }
        go_on(pid, None);
    }

    /// Each call stops its thread twice.
    fn at_call(&mut self, pid: Pid) {
        if self.entered.remove(&pid) {
            if let Some(errno) = self.failing.remove(&pid) {
                change(pid, |registers| registers.rax = (-i64::from(errno as i32)) as u64);
            }
        } else {
            self.entered.insert(pid);
            if self.begun {
                self.enter(pid);
            }
        }
        go_on(pid, None);
    }

    fn enter(&mut self, pid: Pid) {
        let Ok(registers) = ptrace::getregs(pid) else { return };
        let call = Call(registers.orig_rax);
        self.calls.push(call);
        let Some((at, fault)) = self.fault else { return };
        if self.struck.is_some() || self.calls.len() <= at || !call.can(fault) {
            return;
        }
        self.struck = Some(call);
        match fault {
            Fault::Kill => kill(self.root, Signal::SIGKILL).unwrap(),
            Fault::Stop(time) => std::thread::sleep(time),
            Fault::ShortWrite => change(pid, |registers| registers.rdx = registers.rdx.div_ceil(2)),
            Fault::Fail(errno) => {
                change(pid, |registers| registers.orig_rax = u64::MAX);
                self.failing.insert(pid, errno);
            }
        }
    }
}

/// Lets a thread run to its next call. It may be gone.
fn go_on(pid: Pid, signal: Option<Signal>) {
    let signal = signal.filter(|signal| *signal != Signal::SIGTRAP);
    let _ = ptrace::syscall(pid, signal);
}

fn change(pid: Pid, how: impl FnOnce(&mut nix::libc::user_regs_struct)) {
    if let Ok(mut registers) = ptrace::getregs(pid) {
        how(&mut registers);
        let _ = ptrace::setregs(pid, registers);
    }
}
