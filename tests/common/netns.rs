//! Machines made of network namespaces: each with an address of its own on one bridge, and cables that can be cut.
//!
//! A namespace lives as long as the process that holds it, which ends when its standard input does: whatever becomes of
//! the test, nothing is left behind, and nothing outside these namespaces is ever touched.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, and the process that holds it.
struct Space(Child);

impl Drop for Space {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

impl Space {
    fn new() -> Result<Space, String> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut said = String::new();
        if let Some(out) = holder.stdout.as_mut() {
            BufReader::new(out).read_line(&mut said).map_err(|error| error.to_string())?;
        }
        let space = Space(holder);
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net"));
        match (of("self"), of(&space.0.id().to_string())) {
            // Before anything is changed in there: it is really another one.
            (Ok(ours), Ok(theirs)) if said == "up\n" && ours != theirs => Ok(space),
            _ => Err("unshare makes no network namespace here".into()),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t", &self.0.id().to_string(), "--", program]);
        command
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("nsenter: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).map_err(|error| error.to_string())?;
        }
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn ip(&self, line: &str) -> Result<(), String> {
        self.run("ip", &line.split(' ').collect::<Vec<_>>(), "")
    }
}

/// Which way packets are lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    In,
    Out,
    Both,
}

/// Machines on one bridge, and one more for the clients.
pub struct Lab {
    hub: Space,
    machines: Vec<Space>,
}

impl Lab {
    /// So many machines, and one more. An error says why there can be none here.
    pub fn new(count: usize) -> Result<Lab, String> {
        let hub = Space::new()?;
        hub.ip("link add br0 type bridge")?;
        hub.ip("link set br0 up")?;
        let mut lab = Lab { hub, machines: Vec::new() };
        for at in 0..=count {
            let machine = Space::new()?;
            lab.hub.ip(&format!("link add v{at} type veth peer name eth0 netns {}", machine.0.id()))?;
            lab.hub.ip(&format!("link set v{at} master br0 up"))?;
            machine.ip(&format!("addr add {}/24 dev eth0", address(at)))?;
            machine.ip("link set eth0 up")?;
            machine.ip("link set lo up")?;
            machine.run("nft", &["-f", "-"], "table inet lab { }")?;
            lab.machines.push(machine);
        }
        Ok(lab)
    }

    /// Moves this thread, and all threads and processes that it will start, to the clients' machine.
    pub fn enter(&self) {
        let clients = self.machines.last().unwrap();
        let space = File::open(format!("/proc/{}/ns/net", clients.0.id())).unwrap();
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// A command that runs on a machine. It becomes the program: its process id is the program's.
    pub fn command(&self, at: usize, program: &str) -> Command {
        self.machines[at].command(program)
    }

    /// Packets between these machines and those are lost from now on, at these, in this way.
    pub fn part(&self, these: &[usize], those: &[usize], way: Way) {
        let set: Vec<String> = those.iter().map(|at| address(*at)).collect();
        let set = set.join(", ");
        let mut rules = "flush ruleset\ntable inet lab {\n".to_owned();
        if way != Way::Out {
            rules +=
                &format!("chain in {{ type filter hook input priority 0; ip saddr {{ {set} }} drop; }}\n");
        }
        if way != Way::In {
            rules +=
                &format!("chain out {{ type filter hook output priority 0; ip daddr {{ {set} }} drop; }}\n");
        }
        rules += "}\n";
        for at in these {
            self.machines[*at].run("nft", &["-f", "-"], &rules).unwrap();
        }
    }

    /// Pulls a machine's cable: it loses the clients, too.
    pub fn unplug(&self, at: usize) {
        self.hub.ip(&format!("link set v{at} down")).unwrap();
    }

    /// Undoes all that was done to a machine.
    pub fn heal(&self, at: usize) {
        self.machines[at].run("nft", &["flush", "ruleset"], "").unwrap();
        self.hub.ip(&format!("link set v{at} up")).unwrap();
    }
}

/// A machine's address.
pub fn address(at: usize) -> String {
    format!("10.77.0.{}", at + 1)
}
