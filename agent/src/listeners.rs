//! Where the inference API listens. The control half opens the listeners once and hands them to each runtime half: clients that
//! connect while a runtime is being replaced wait for the next one, and no runtime can open another way in.

use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::AgentError;
use crate::files;

/// Who may use the socket, and read the token of the loopback port: the agent's user and group.
const SHARED_MODE: u32 = 0o660;
const MAX_TOKEN_BYTES: u64 = 4096;

/// Listeners that are bound, for as many runtime halves as it takes.
#[derive(Debug)]
pub struct Listeners {
    unix: UnixListener,
    loopback: Option<Loopback>,
}

/// The loopback port, and what a request on it must carry.
#[derive(Debug)]
struct Loopback {
    listener: TcpListener,
    token: String,
}

impl Listeners {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// [`AgentError::Listen`]; [`AgentError::File`] and [`AgentError::Damaged`] for the token.
    pub fn open(config: &Config) -> Result<Self, AgentError> {
        let token = || token(&config.loopback_token_file());
        let loopback = config.listen_loopback.map(|address| token().map(|token| (address, token))).transpose()?;
        Self::bind(&config.inference_socket, loopback)
    }

    /// Binds a Unix socket, replacing what an earlier agent left there, and a loopback address with its token.
    ///
    /// # Errors
    /// [`AgentError::Listen`].
    pub fn bind(socket: &Path, loopback: Option<(SocketAddr, String)>) -> Result<Self, AgentError> {
        let failed = |at: PathBuf| move |source| AgentError::Listen { at, source };
        let unix = bind_socket(socket).map_err(failed(socket.to_owned()))?;
        let open = |address: SocketAddr| {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true).map(|()| listener)
        };
        let loopback = match loopback {
            Some((address, token)) => {
                let listener = open(address).map_err(failed(address.to_string().into()))?;
                Some(Loopback { listener, token })
            }
            None => None,
        };
        Ok(Self { unix, loopback })
    }

    /// The listeners as files: the socket's, then the loopback port's.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(self.unix.as_fd()), self.loopback.as_ref().map(|l| l.listener.as_fd())].into_iter().flatten()
    }

    /// What a request on the loopback port must carry, where there is one.
    pub fn token(&self) -> Option<&str> {
        self.loopback.as_ref().map(|l| l.token.as_str())
    }

    /// Address of the loopback port.
    pub fn loopback(&self) -> Option<SocketAddr> {
        self.loopback.as_ref().and_then(|l| l.listener.local_addr().ok())
    }
}

/// Reads the token, or makes one up where there is no file.
fn token(path: &Path) -> Result<String, AgentError> {
    if let Some(bytes) = files::read_bounded(path, MAX_TOKEN_BYTES)? {
        let token = String::from_utf8_lossy(&bytes).trim().to_owned();
        let sound = token.len() >= 16 && token.bytes().all(|b| b.is_ascii_graphic());
        let reason = || format!("the token has {} characters: expected 16 or more visible ones", token.len());
        return if sound { Ok(token) } else { Err(AgentError::Damaged { path: path.to_owned(), reason: reason() }) };
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|e| AgentError::file("writing", path)(io::Error::other(e.to_string())))?;
    let token = hex::encode(random);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(AgentError::file("creating folder", parent))?;
    }
    files::write_atomic(path, token.as_bytes())?;
    fs::set_permissions(path, Permissions::from_mode(SHARED_MODE & 0o640)).map_err(AgentError::file("protecting", path))?;
    Ok(token)
}

/// Binds beside the wanted path, sets the mode and renames: clients meet the old socket or the new one, never one that is too open.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = Path::new(&beside);
    if beside.exists() {
        fs::remove_file(beside)?;
    }
    let listener = UnixListener::bind(beside)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(beside, Permissions::from_mode(SHARED_MODE))?;
    fs::rename(beside, path)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_for_owner_and_group_and_replaces_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/inference.sock");
        drop(Listeners::bind(&socket, None).unwrap());
        let _second = Listeners::bind(&socket, None).unwrap();
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::read_dir(socket.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn token_is_made_once_kept_and_never_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/token");
        let made = token(&path).unwrap();
        assert_eq!((made.len(), token(&path).unwrap()), (64, made));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        fs::write(&path, "short\n").unwrap();
        assert!(matches!(token(&path), Err(AgentError::Damaged { .. })));
    }
}
