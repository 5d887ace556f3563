//! A real PostgreSQL for tests: one server a process, one database a test, gone when the process is.
//!
//! Needs the server's programs: `PLEACH_POSTGRES_BIN` (a folder), `/usr/lib/postgresql/*/bin`, or the search path.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Runs the server until its standard input ends, which it does when the process that started it is gone, however that ended; then
/// removes its folder. No TCP port: a socket in the folder. Nothing is worth a sync.
const SCRIPT: &str = r#"
cd "$FOLDER" || exit 1
"$BIN/initdb" --pgdata=data --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync >initdb.log 2>&1 \
    || { cat initdb.log; exit 1; }
"$BIN/postgres" -D data -k "$FOLDER" -c listen_addresses= -c fsync=off -c full_page_writes=off -c synchronous_commit=off \
    -c max_connections=400 -c shared_buffers=32MB >postgres.log 2>&1 &
server=$!
until "$BIN/pg_isready" --quiet --host="$FOLDER" --username=postgres; do
    kill -0 $server 2>/dev/null || { cat postgres.log; exit 1; }
done
echo ready
cat >/dev/null
kill -INT $server
wait $server
cd /
rm -rf "$FOLDER"
"#;

/// A running server.
#[derive(Debug)]
struct Server {
    folder: PathBuf,
    bin: PathBuf,
    databases: AtomicU32,
    /// Holds the standard input open.
    _process: Child,
}

/// Address of a fresh, empty database on this process's server, which is started by the first call.
///
/// # Panics
/// When there is no PostgreSQL or it does not start, saying what to install or what it said.
#[allow(clippy::panic)] // a test cannot go on without
pub fn database() -> String {
    static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
    let made = SERVER.get_or_init(start).as_ref().map_err(Clone::clone).and_then(create_database);
    made.unwrap_or_else(|reason| panic!("{reason}"))
}

fn start() -> Result<Server, String> {
    let bin = programs()?;
    let folder = std::env::temp_dir().join(format!("pleach-postgres-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut process = unprivileged(&folder)?
        .args(["sh", "-c", SCRIPT])
        .env("BIN", &bin)
        .env("FOLDER", &folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0) // an interrupt from the keyboard is for the tests; the server ends in order behind them
        .spawn()
        .map_err(|e| format!("PostgreSQL does not start: {e}"))?;
    let Some(output) = process.stdout.take() else { return Err("PostgreSQL's output is not there".to_owned()) };
    let mut said = String::new();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if line == "ready" {
            return Ok(Server { folder, bin, databases: AtomicU32::new(0), _process: process });
        }
        said.push_str(&line);
        said.push('\n');
    }
    Err(format!("PostgreSQL does not start:\n{said}"))
}

fn create_database(server: &Server) -> Result<String, String> {
    let name = format!("test{}", server.databases.fetch_add(1, Ordering::Relaxed));
    let output = Command::new(server.bin.join("createdb"))
        .args(["--username=postgres", "--strategy=file_copy", &name])
        .arg(format!("--host={}", server.folder.display()))
        .output()
        .map_err(|e| format!("createdb: {e}"))?;
    if !output.status.success() {
        return Err(format!("createdb: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(format!("postgres://postgres@localhost/{name}?host={}", server.folder.display()))
}

/// A command that runs its arguments as somebody whom PostgreSQL accepts: it refuses root.
fn unprivileged(folder: &Path) -> Result<Command, String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    if metadata.uid() != 0 {
        return Ok(Command::new("env"));
    }
    let chown = Command::new("chown").arg("postgres").arg(folder).status();
    if !chown.is_ok_and(|s| s.success()) {
        return Err("there is no user `postgres` to run PostgreSQL as: install it with `apt-get install postgresql`".to_owned());
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
    Ok(command)
}

fn programs() -> Result<PathBuf, String> {
    if let Some(folder) = std::env::var_os("PLEACH_POSTGRES_BIN").map(PathBuf::from) {
        let there = folder.join("initdb").is_file();
        return if there { Ok(folder) } else { Err(format!("PLEACH_POSTGRES_BIN: no initdb in {}", folder.display())) };
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.reverse();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.into_iter().find(|folder| folder.join("initdb").is_file()).ok_or_else(|| {
        "no PostgreSQL server found: install it with `apt-get install postgresql`, or name the folder of its programs in PLEACH_POSTGRES_BIN"
            .to_owned()
    })
}
