//! A disk that is full, and one that cannot be written any more: real ones, so these tests need root and pass over it without.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pleach_proto::fleet::event::State;

use crate::agent::Agent;
use crate::bundle::bundle;
use crate::lab::Lab;

/// A file system of its own for an agent's state, until dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).output();
        if !mounted.is_ok_and(|o| o.status.success()) {
            eprintln!("skipped: mounting a file system needs root");
            return None;
        }
        Some(Self(at.to_owned()))
    }

    fn remount(&self, how: &str) {
        // What is open for writing keeps it writable: the kernel refuses until the agent has closed its files.
        assert!(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0).status().unwrap().success());
    }

    /// Takes the last byte.
    fn fill(&self) {
        let junk = vec![0; 64 << 20];
        let _ = fs::write(self.0.join("junk"), junk);
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("junk")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_downloads_keeps_serving_and_recovers() {
    let lab = Lab::start().await;
    let (first, second, third) = (bundle(1), bundle(2), bundle(3));
    let mut agent = Agent::new(&lab);
    let Some(disk) = Disk::mount(&agent.state(), "12m") else { return };
    agent.start_again();
    lab.wait_report("a profile", |r| r.profile.is_some()).await;
    lab.assign(&first, 1);
    lab.wait_event(1, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(1, State::Proven).await;

    disk.fill();
    lab.assign(&second, 2);
    agent.infer(10).await;
    agent.kill_runtime();
    agent.infer(1).await;
    agent.kill();
    agent.start_again();
    agent.serves(&first).await;
    assert!(!lab.states(2).contains(&State::Probation));

    disk.make_room();
    lab.assign(&third, 3);
    lab.wait_event(3, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(3, State::Proven).await;
    agent.serves(&third).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_would_take_the_reserve_is_refused_by_name() {
    let lab = Lab::start().await;
    let mut agent = Agent::new(&lab);
    let Some(_disk) = Disk::mount(&agent.state(), "5m") else { return };
    agent.start_again();
    lab.wait_report("a profile", |r| r.profile.is_some()).await;
    lab.assign(&bundle(1), 1);
    assert_eq!(lab.wait_event(1, State::Failed).await.check, "disk-full");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_became_read_only_still_serves_what_is_proven_also_after_a_start() {
    let lab = Lab::start().await;
    let first = bundle(1);
    let mut agent = Agent::new(&lab);
    let Some(disk) = Disk::mount(&agent.state(), "12m") else { return };
    agent.start_again();
    lab.wait_report("a profile", |r| r.profile.is_some()).await;
    lab.assign(&first, 1);
    lab.wait_event(1, State::Probation).await;
    agent.infer(5).await;
    lab.wait_event(1, State::Proven).await;
    agent.kill();
    disk.remount("ro");
    agent.start_again();
    agent.serves(&first).await;
    agent.kill();
    disk.remount("rw");
    agent.start_again();
    agent.serves(&first).await;
}
