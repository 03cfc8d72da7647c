//! A real PostgreSQL server for tests: the system's binaries, on a socket in a folder of its own, gone when the tests are.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Set to `required`: the tests fail where there is no server.
const REQUIRED: &str = "ASTERISM_TEST_POSTGRES";
const USER: &str = "postgres";

/// A server. Dropping it, or the end of the process that started it, stops it and removes its folder.
#[derive(Debug)]
pub struct Server {
    binaries: PathBuf,
    folder: PathBuf,
    /// Whom it runs as; a server refuses to run as root.
    user: Option<(u32, u32)>,
    databases: AtomicU32,
    /// Waits for the end of its input, which comes even where this process is killed.
    guard: Option<Child>,
}

impl Server {
    /// The one that all tests of a process share. `None`, said aloud: there are no binaries.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// One of its own.
    pub fn start() -> Option<Self> {
        let Some(binaries) = binaries() else {
            let missing = "no PostgreSQL server (Debian's package is postgresql)";
            assert!(std::env::var(REQUIRED).as_deref() != Ok("required"), "{missing}");
            println!("SKIPPED: {missing}");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("pg").tempdir().unwrap().keep();
        let user = (id(&["-u"]) == Some(0)).then(|| {
            let user = (id(&["-u", USER]).expect("its user"), id(&["-g", USER]).expect("its group"));
            chown(&folder, Some(user.0), Some(user.1)).unwrap();
            user
        });
        let mut server = Self { binaries, folder, user, databases: AtomicU32::new(0), guard: None };
        let end = format!(
            "cat >/dev/null; '{}' -D data -m immediate stop; rm -rf '{}'",
            server.binary("pg_ctl"),
            server.folder()
        );
        let guard = server.command("/bin/sh").args(["-c", &end]).stdin(Stdio::piped()).spawn().unwrap();
        server.guard = Some(guard);
        let made = ["-D", "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"];
        server.run("initdb", &made);
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 400\nshared_buffers = 32MB\n",
            server.folder()
        );
        let file = server.folder.join("data/postgresql.conf");
        let text = fs::read_to_string(&file).unwrap() + &settings;
        fs::write(&file, text).unwrap();
        server.go();
        Some(server)
    }

    /// Starts it, once it was stopped.
    pub fn go(&self) {
        self.run("pg_ctl", &["-D", "data", "-l", "log", "-w", "start"]);
    }

    /// Stops it as if its machine had failed: without a last word to the disk.
    pub fn fail(&self) {
        self.run("pg_ctl", &["-D", "data", "-m", "immediate", "-w", "stop"]);
    }

    /// The URL of a new, empty database.
    pub fn database(&self) -> String {
        let name = format!("d{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run("createdb", &["-h", self.folder(), "-U", USER, &name]);
        self.url(&name)
    }

    /// The URL of a database.
    pub fn url(&self, name: &str) -> String {
        format!("postgres://{USER}@{}/{name}", self.folder().replace('/', "%2F"))
    }

    fn folder(&self) -> &str {
        self.folder.to_str().expect("a plain path")
    }

    fn binary(&self, name: &str) -> String {
        self.binaries.join(name).to_str().expect("a plain path").to_owned()
    }

    /// In the server's folder, as its user.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) {
        let errors = self.folder.join("errors");
        let file = fs::File::create(&errors).unwrap();
        let status = self.command(&self.binary(name)).args(arguments).stderr(file).status().unwrap();
        let log = || {
            fs::read_to_string(&errors).unwrap()
                + &fs::read_to_string(self.folder.join("log")).unwrap_or_default()
        };
        assert!(status.success(), "{name} {arguments:?}: {}", log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            guard.wait().unwrap();
        }
    }
}

/// The folder of the newest server's binaries.
fn binaries() -> Option<PathBuf> {
    let has_them =
        |folder: &PathBuf| ["initdb", "pg_ctl", "createdb"].iter().all(|name| folder.join(name).exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_the_path = std::env::split_paths(&path).find(has_them);
    on_the_path.or_else(|| {
        let versions = fs::read_dir(Path::new("/usr/lib/postgresql")).ok()?.flatten();
        let folders = versions.map(|version| version.path().join("bin")).filter(has_them);
        folders.max_by_key(|folder| folder.parent()?.file_name()?.to_str()?.parse::<u32>().ok())
    })
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
