//! Which devices have their stream open at this controller, and how to reach those streams.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pleach_domain::DeviceId;
use tokio::sync::watch;

/// Most boots of one device that are remembered.
const MAX_BOOTS: usize = 8;

/// The open streams, one for each device. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Presence(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    by_device: HashMap<DeviceId, Stream>,
    next: u64,
    /// Boots that came before the present one, of devices that booted while this controller ran.
    boots: HashMap<DeviceId, VecDeque<String>>,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    look: watch::Sender<u64>,
}

/// One stream's place. Dropping it takes the device off the list, unless a newer stream has its place.
#[derive(Debug)]
pub(crate) struct Seat {
    presence: Presence,
    device: DeviceId,
    number: u64,
    /// Changes when the device's desired state may have changed; closes when a newer stream of the same device opens.
    pub(crate) look: watch::Receiver<u64>,
}

impl Presence {
    /// Takes the place of a device; an older stream of it is told to end.
    pub(crate) fn enter(&self, device: &DeviceId) -> Seat {
        let (sender, look) = watch::channel(0);
        let mut streams = self.lock();
        streams.next += 1;
        let number = streams.next;
        // Dropping the older stream's sender is what tells it to end.
        streams.by_device.insert(device.clone(), Stream { number, look: sender });
        drop(streams);
        Seat { presence: self.clone(), device: device.clone(), number, look }
    }

    /// Notes that a device which was heard in boot `before` is heard in boot `now`. True when `now` had been left behind already: no
    /// machine goes back to an earlier boot, so then two machines speak with one key.
    pub(crate) fn boot_returned(&self, device: &DeviceId, before: &str, now: &str) -> bool {
        if before == now || before.is_empty() || now.is_empty() {
            return false;
        }
        let mut streams = self.lock();
        let left = streams.boots.entry(device.clone()).or_default();
        let returned = left.iter().any(|boot| boot == now);
        left.retain(|boot| boot != before);
        left.truncate(MAX_BOOTS - 1);
        left.push_front(before.to_owned());
        returned
    }

    /// Forgets the boots of a device, as when a person has looked at it.
    pub(crate) fn forget_boots(&self, device: &DeviceId) {
        self.lock().boots.remove(device);
    }

    /// Whether the device's stream is open here.
    pub fn is_connected(&self, device: &DeviceId) -> bool {
        self.lock().by_device.contains_key(device)
    }

    /// The devices whose stream is open here, in no order.
    pub fn connected(&self) -> Vec<DeviceId> {
        self.lock().by_device.keys().cloned().collect()
    }

    /// Has the device's stream compare what is desired with what it sent. Does nothing when it is not open here.
    pub fn nudge(&self, device: &DeviceId) {
        if let Some(stream) = self.lock().by_device.get(device) {
            stream.look.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// As [`Presence::nudge`], for every open stream.
    pub fn nudge_all(&self) {
        for stream in self.lock().by_device.values() {
            stream.look.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Nothing in here can be left half-done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut streams = self.presence.lock();
        if streams.by_device.get(&self.device).is_some_and(|s| s.number == self.number) {
            streams.by_device.remove(&self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_comes_back_is_a_second_machine_and_a_reboot_is_not() {
        let (presence, device) = (Presence::default(), "d".parse::<DeviceId>().unwrap());
        let boots = ["a", "b", "c", "", "c"];
        assert!(boots.windows(2).all(|pair| !presence.boot_returned(&device, pair[0], pair[1])));
        assert!(presence.boot_returned(&device, "c", "a"));
        presence.forget_boots(&device);
        assert!(!presence.boot_returned(&device, "c", "a"));
        for boot in 0..100 {
            assert!(!presence.boot_returned(&device, &format!("r{boot}"), &format!("r{}", boot + 1)));
        }
        assert_eq!(presence.lock().boots[&device].len(), MAX_BOOTS);
    }

    #[test]
    fn a_newer_stream_takes_the_place_and_keeps_it_when_the_older_one_ends() {
        let (presence, device) = (Presence::default(), "d".parse::<DeviceId>().unwrap());
        let older = presence.enter(&device);
        let newer = presence.enter(&device);
        assert!(older.look.has_changed().is_err() && newer.look.has_changed().is_ok());
        drop(older);
        assert!(presence.is_connected(&device));
        presence.nudge(&device);
        assert!(newer.look.has_changed().unwrap());
        drop(newer);
        assert!(!presence.is_connected(&device));
    }
}
