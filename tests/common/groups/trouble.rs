//! What goes wrong in a run, and how often.

use std::time::Duration;

use quorate::sim::{DiskFaults, NemesisPlan, NetConfig, Pace};

/// Trouble that the kit's own nemesis does not know. The numbers are weights.
#[derive(Clone, Copy, Default)]
pub struct Extra {
    /// A node is cut off from everybody, in one direction or both.
    pub isolate: u64,
    /// Everybody reaches his two neighbours in a ring, and nobody else.
    pub ring: u64,
    /// The group falls into two halves.
    pub halves: u64,
    /// All machines lose power at once.
    pub blackout: u64,
    /// The calendar jumps.
    pub jump: u64,
    /// Mastership is handed over, by an operator's order.
    pub transfer: u64,
    /// A node is told to stand.
    pub promote: u64,
    /// The master is told to step down.
    pub demote: u64,
    /// A node that is no member joins.
    pub add: u64,
    /// A member is removed.
    pub remove: u64,
    /// A member that has caught up loses its directory, and joins anew.
    pub wipe: u64,
    /// A node stops as a whole, and goes on as if nothing had happened.
    pub pause: u64,
}

impl Extra {
    pub fn weights(&self) -> [u64; 12] {
        [
            self.isolate,
            self.ring,
            self.halves,
            self.blackout,
            self.jump,
            self.transfer,
            self.promote,
            self.demote,
            self.add,
            self.remove,
            self.wipe,
            self.pause,
        ]
    }
}

/// A group, and how its run is troubled.
#[derive(Clone)]
pub struct Plan {
    /// How many found the group.
    pub founders: usize,
    /// How many arbiters join it.
    pub arbiters: usize,
    /// How many secondaries join it, fed by the second founder.
    pub secondaries: usize,
    /// How many more nodes there are, to join later.
    pub spares: usize,
    pub clients: usize,
    pub nemesis: NemesisPlan,
    /// The mean time between two of the others.
    pub extra_every: Duration,
    pub extra: Extra,
    pub net: NetConfig,
    pub disks: DiskFaults,
    /// Of the first founder, if it is another.
    pub first_disk: Option<DiskFaults>,
    pub pace: Pace,
    pub time: Duration,
    /// Nothing happens to a master, so the first has to stay.
    pub steady: bool,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Plan {
    /// A group on sound machines and a sound network.
    pub fn calm(founders: usize) -> Plan {
        Plan {
            founders,
            arbiters: 0,
            secondaries: 0,
            spares: 0,
            clients: 4,
            nemesis: NemesisPlan { every: Duration::from_secs(3600), ..NemesisPlan::default() },
            extra_every: ms(150),
            extra: Extra::default(),
            net: NetConfig::default(),
            disks: DiskFaults { write_back: 0.2, ..DiskFaults::default() },
            first_disk: None,
            pace: Pace::default(),
            time: ms(1500),
            steady: false,
        }
    }

    /// A master to which nothing happens, while others are cut off from everybody and come back.
    pub fn steady(founders: usize) -> Plan {
        let extra = Extra { isolate: 1, ..Extra::default() };
        let pace = Pace { stall: 0.0, ..Pace::default() };
        Plan { extra, extra_every: ms(400), steady: true, pace, time: ms(3000), ..Plan::calm(founders) }
    }

    /// A network so slow that candidates meet, and masters that are told to go.
    pub fn slow_network(founders: usize) -> Plan {
        let net =
            NetConfig { min_delay: ms(1), max_delay: ms(8), dial_failure: 0.05, ..NetConfig::default() };
        let extra = Extra { demote: 4, isolate: 2, blackout: 1, ..Extra::default() };
        let nemesis = NemesisPlan { every: ms(300), lasts: ms(150), ..NemesisPlan::default() };
        Plan { net, extra, extra_every: ms(200), nemesis, time: ms(3000), ..Plan::calm(founders) }
    }

    /// A secondary that is fed by a replica, under crashes and partitions.
    pub fn cascade() -> Plan {
        let extra = Extra { isolate: 2, transfer: 1, demote: 1, ..Extra::default() };
        let nemesis = NemesisPlan { every: ms(200), lasts: ms(200), ..NemesisPlan::default() };
        Plan { secondaries: 2, nemesis, extra, extra_every: ms(200), ..Plan::calm(3) }
    }

    /// Crashes, kills and resets; now and then all lose power at once.
    pub fn crashes(founders: usize) -> Plan {
        let nemesis = NemesisPlan {
            every: ms(120),
            lasts: ms(250),
            max_down: founders / 2 + 1,
            partition: 0,
            one_way: 0,
            ..NemesisPlan::default()
        };
        let net = NetConfig { reset: 0.001, dial_failure: 0.1, ..NetConfig::default() };
        let extra = Extra { blackout: 1, ..Extra::default() };
        Plan { nemesis, net, extra, extra_every: ms(500), ..Plan::calm(founders) }
    }

    /// Partitions of every shape: between two, in one direction, not transitive, halves.
    pub fn partitions(founders: usize) -> Plan {
        let nemesis =
            NemesisPlan { every: ms(100), lasts: ms(400), crash: 0, kill: 0, ..NemesisPlan::default() };
        let net = NetConfig { reset: 0.001, dial_failure: 0.05, ..NetConfig::default() };
        let extra = Extra { isolate: 3, ring: 1, halves: 2, ..Extra::default() };
        Plan { nemesis, net, extra, ..Plan::calm(founders) }
    }

    /// Threads that stop for longer than an election takes, and a calendar that jumps; a few crashes.
    pub fn pauses(founders: usize) -> Plan {
        let pace = Pace { stall: 0.001, max_stall: ms(300), ..Pace::default() };
        let nemesis = NemesisPlan { every: ms(400), lasts: ms(200), ..NemesisPlan::default() };
        Plan { pace, nemesis, extra: Extra { jump: 1, pause: 4, ..Extra::default() }, ..Plan::calm(founders) }
    }

    /// Disks that fail: writes, syncs, creates, space.
    pub fn failing_disks(founders: usize) -> Plan {
        let disks = DiskFaults {
            write_error: 0.001,
            no_space: 0.001,
            create_error: 0.003,
            sync_error: 0.001,
            dir_sync_error: 0.003,
            write_back: 0.2,
            ..DiskFaults::default()
        };
        let nemesis = NemesisPlan { every: ms(300), lasts: ms(200), ..NemesisPlan::default() };
        Plan { disks, nemesis, ..Plan::calm(founders) }
    }

    /// Two nodes with disks and an arbiter, under crashes and partitions.
    pub fn arbiter() -> Plan {
        let extra = Extra { isolate: 1, blackout: 1, transfer: 1, ..Extra::default() };
        let nemesis = NemesisPlan { every: ms(200), lasts: ms(300), ..NemesisPlan::default() };
        Plan { founders: 2, arbiters: 1, nemesis, extra, extra_every: ms(300), ..Plan::calm(2) }
    }

    /// Nodes come and go, are told to lead and not to, and lose their directories, under crashes and partitions.
    pub fn membership() -> Plan {
        let extra = Extra {
            transfer: 2,
            promote: 1,
            demote: 1,
            add: 4,
            remove: 3,
            wipe: 1,
            isolate: 1,
            ..Extra::default()
        };
        let nemesis = NemesisPlan { every: ms(300), lasts: ms(150), ..NemesisPlan::default() };
        Plan { spares: 2, nemesis, extra, extra_every: ms(80), time: ms(2500), ..Plan::calm(3) }
    }

    /// All of it.
    pub fn everything() -> Plan {
        let extra = Extra {
            isolate: 2,
            ring: 1,
            halves: 1,
            blackout: 1,
            jump: 1,
            transfer: 2,
            promote: 1,
            demote: 1,
            add: 3,
            remove: 2,
            wipe: 1,
            pause: 2,
        };
        let nemesis = NemesisPlan { every: ms(150), lasts: ms(250), max_down: 2, ..NemesisPlan::default() };
        let pace = Pace { stall: 0.001, max_stall: ms(150), ..Pace::default() };
        Plan {
            arbiters: 1,
            secondaries: 1,
            spares: 1,
            nemesis,
            extra,
            extra_every: ms(120),
            net: NetConfig {
                reset: 0.001,
                dial_failure: 0.1,
                damage: 0.001,
                lose: 0.001,
                ..NetConfig::default()
            },
            pace,
            time: ms(2500),
            ..Plan::failing_disks(3)
        }
    }
}
