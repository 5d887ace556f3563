//! `cargo xtask dist --trial`: the packages in a Debian that really boots. Installs them, enrols the agent with the controller beside
//! it, crashes and hangs it, upgrades, removes and purges, and looks at what is left.
//!
//! Needs root, `debootstrap` and `systemd-nspawn`. Outside of the test suite, because a Debian has to be fetched once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::process;

const SUITE: &str = "bookworm";
const INCLUDE: &str = "--include=systemd,systemd-sysv,dbus,ca-certificates,procps";
const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "pleach token create --api https://localhost:7444 --ca /var/lib/pleach-controller/ca.pem --token-file /var/lib/pleach-controller/admin.token";

/// A Debian that runs, over a root folder that stays as it is.
struct Machine {
    work: tempfile::TempDir,
    child: Child,
    leader: String,
}

/// Tries packages in a cached root folder.
pub(super) fn run(packages: &[PathBuf]) -> anyhow::Result<()> {
    ensure!(process::is_root(), "booting a Debian needs root");
    for (tool, package) in [("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux")] {
        ensure!(process::answers(tool, &["--version"]), "{tool} is needed: `apt-get install {package}`");
    }
    let machine = Machine::boot(&root()?)?;
    machine.copy(packages)?;
    eprintln!("booted; installing");
    machine.sh("dpkg -i /packages/*.deb")?;
    machine.expect("systemctl is-enabled pleach-agent", "enabled")?;
    ensure!(machine.sh("systemctl is-active pleach-agent").is_err(), "an agent without a configuration runs");
    machine.serve()?;
    machine.hardened()?;
    machine.recovers()?;
    eprintln!("upgrading, removing, purging");
    machine.sh("dpkg -i /packages/pleach-agent_*.deb")?;
    machine.wait("systemctl is-active pleach-agent", "active")?;
    machine.expect("pleach-agent check --config /etc/pleach/agent.toml --output json | grep -c 'not enrolled' || true", "0")?;
    machine.sh("dpkg -r pleach-agent pleach-controller pleach")?;
    machine.sh("test -e /var/lib/private/pleach/identity.json && test ! -e /run/pleach/inference.sock")?;
    machine.sh("dpkg -P pleach-agent pleach-controller pleach pleach-onnxruntime")?;
    let left = machine.sh("ls -d /var/lib/private/pleach* /var/lib/pleach* /etc/pleach* /usr/lib/pleach* /usr/bin/pleach* /run/pleach* /lib/systemd/system/pleach* 2>/dev/null || true")?;
    ensure!(left.trim().is_empty(), "purged packages leave {left}");
    println!("packages install, serve, recover, upgrade, are removed and purged cleanly");
    Ok(())
}

/// The root folder, fetched once.
fn root() -> anyhow::Result<PathBuf> {
    let root = crate::onnxruntime::cache_folder()?.join(format!("debian-{SUITE}"));
    if !root.join("complete").is_file() {
        eprintln!("fetching a Debian into {}", root.display());
        process::output(Command::new("debootstrap").args(["--variant=minbase", INCLUDE, SUITE]).arg(&root))?;
        fs::write(root.join("complete"), "")?;
    }
    Ok(root)
}

impl Machine {
    /// Boots. A tmpfs on /run/systemd of the container manager keeps it apart from the one of this machine.
    fn boot(root: &Path) -> anyhow::Result<Self> {
        let work = tempfile::tempdir()?;
        let at = |name: &str| work.path().join(name);
        for name in ["upper", "packages", "merged"] {
            fs::create_dir(at(name))?;
        }
        let (upper, packages, merged) = (at("upper"), at("packages"), at("merged"));
        let script = format!(
            "mount -t tmpfs tmpfs {u} && mkdir {u}/u {u}/w && mount -t overlay overlay -o lowerdir={r},upperdir={u}/u,workdir={u}/w {m} && \
             mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && \
             exec systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --machine=pleach-trial --system-call-filter=\"landlock_create_ruleset landlock_add_rule landlock_restrict_self\" -D {m} --bind={w}:/packages",
            u = upper.display(),
            r = root.display(),
            m = merged.display(),
            w = packages.display(),
        );
        let log = fs::File::create(at("log"))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("starting the machine")?;
        let begun = Instant::now();
        let leader = loop {
            if let Some(status) = child.try_wait()? {
                bail!("the machine ended with {status}: {}", fs::read_to_string(at("log"))?);
            }
            ensure!(begun.elapsed() < PATIENCE, "the machine does not boot: {}", fs::read_to_string(at("log"))?);
            thread::sleep(Duration::from_millis(100));
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
            let init = children
                .split_whitespace()
                .find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "systemd"));
            if let Some(pid) = init {
                break pid.to_owned();
            }
        };
        let machine = Self { work, child, leader };
        machine.wait("systemctl is-system-running | grep -E 'running|degraded'", "")?;
        machine.sh("grep -q localhost /etc/hosts || echo 127.0.0.1 localhost >> /etc/hosts")?;
        Ok(machine)
    }

    fn copy(&self, packages: &[PathBuf]) -> anyhow::Result<()> {
        for package in packages {
            let name = package.file_name().context("a package has a name")?;
            fs::copy(package, self.work.path().join("packages").join(name))?;
        }
        Ok(())
    }

    /// Configures both services and waits until the agent has enrolled and serves its socket.
    fn serve(&self) -> anyhow::Result<()> {
        self.sh("printf 'hostname = [\"localhost\"]\\n' > /etc/pleach/controller.toml && systemctl start pleach-controller")?;
        self.sh(&format!("cd /root && {TOKEN} | grep -o 'plt1[^ ]*' > /etc/pleach/token"))?;
        self.sh("printf 'controller = \"https://localhost:7443\"\\nprofile_budget_ms = 2\\n' > /etc/pleach/agent.toml")?;
        let begun = Instant::now();
        self.sh("systemctl start pleach-agent")?;
        eprintln!("the agent was ready after {} ms", begun.elapsed().as_millis());
        self.wait("pleach-agent status --inference-socket /run/pleach/inference.sock | grep state", "empty")?;
        self.wait("journalctl -u pleach-agent -o cat | grep -c ' connected ' || true", "1")?;
        self.expect("pleach-agent check --config /etc/pleach/agent.toml | grep identity", "certificate for")
    }

    /// The services run as users of their own and the sandbox within the unit's holds.
    fn hardened(&self) -> anyhow::Result<()> {
        for unit in ["pleach-agent", "pleach-controller"] {
            // The range of dynamic users, systemd.exec(5).
            self.sh(&format!("test $(stat -c %u /proc/$(systemctl show -p MainPID --value {unit})) -ge 61184"))?;
            self.sh(&format!("systemd-analyze security --threshold=20 {unit}.service"))?;
        }
        self.expect("stat -c %a /var/lib/private/pleach/keys/identity.key", "600")?;
        self.expect("stat -c '%G %a' /run/pleach/inference.sock", "pleach 660")?;
        self.expect("journalctl -u pleach-agent -o cat | grep sandboxed", "the runtime is sandboxed")?;
        let partial = self.sh("journalctl -u pleach-agent -o cat | grep 'sandboxed in part' || true")?;
        ensure!(partial.trim().is_empty(), "within the unit the sandbox lacks something: {partial}");
        Ok(())
    }

    /// The runtime half comes back after its end, the service after a hang and after a kill.
    fn recovers(&self) -> anyhow::Result<()> {
        let main = || self.sh("systemctl show -p MainPID --value pleach-agent").map(|pid| pid.trim().to_owned());
        let before = main()?;
        self.sh("pkill -KILL -f '[p]leach-agent runtime'")?;
        self.wait("pleach-agent status --inference-socket /run/pleach/inference.sock | grep state", "empty")?;
        ensure!(main()? == before, "the end of the runtime half ended the service");
        self.sh(&format!("kill -KILL {before}"))?;
        self.wait("systemctl is-active pleach-agent", "active")?;
        let killed = main()?;
        ensure!(killed != before, "the service was not started again");
        self.sh(&format!("kill -STOP {killed}"))?;
        eprintln!("waiting for the watchdog");
        self.wait("journalctl -u pleach-agent -o cat | grep -c -i 'watchdog timeout' || true", "1")?;
        self.wait("systemctl is-active pleach-agent", "active")?;
        self.wait("pleach-agent status --inference-socket /run/pleach/inference.sock | grep state", "empty")
    }

    fn sh(&self, line: &str) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &self.leader,
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            "-r",
            "-w",
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
        ]);
        process::output(command.args(["sh", "-c", line]))
    }

    fn expect(&self, line: &str, wanted: &str) -> anyhow::Result<()> {
        let got = self.sh(line)?;
        ensure!(got.contains(wanted), "`{line}` says {got:?}: expected {wanted:?}");
        Ok(())
    }

    fn wait(&self, line: &str, wanted: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let last = self.expect(line, wanted);
            if last.is_ok() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let log = self.sh("journalctl --no-pager -n 60 -o cat").unwrap_or_default();
                return last.with_context(|| log);
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The end of its init ends the machine.
        let _ = self.sh("systemctl poweroff --force --force");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
