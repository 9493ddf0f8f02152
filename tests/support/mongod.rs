//! Real mongods for tests: own ports, own directories, killed by their ids at the end. `make setup`
//! fetches the program (`tests/fetch_mongod.sh`); `MONGOD` names another.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::openssl::openssl;
use mongodb::Client;
use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;
use rollcall::clock::Stopwatch;

const HINT: &str = "these tests need a real mongod: `make setup` fetches one (tests/fetch_mongod.sh; Debian: libcurl4, \
                    libssl3), or set MONGOD to the path of one (4.4 or later)";
const PATIENCE: Duration = Duration::from_mins(1);

/// A replica set on loopback, of one server or more.
pub struct Mongod {
    nodes: Vec<Node>,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    /// `user:password@`, with --auth.
    credentials: String,
    tls: String,
}

struct Node {
    child: Option<Child>,
    port: u16,
    options: Vec<String>,
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn program() -> PathBuf {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/mongod/mongod");
    let program = std::env::var_os("MONGOD").map_or(usual, PathBuf::from);
    assert!(program.is_file(), "{} is missing; {HINT}", program.display());
    program
}

impl Mongod {
    pub fn start() -> Self {
        Self::start_with(1, |_| Vec::new())
    }

    pub fn start_set(nodes: usize) -> Self {
        Self::start_with(nodes, |_| Vec::new())
    }

    /// With users, of whom `admin` (password `admin`) is the first: for a server where roles count.
    pub fn start_with_users() -> Self {
        let mut server = Self::prepared(1, |dir| {
            let key = dir.join("key");
            fs::write(&key, "aKeyForOneTestOnly0123456789").unwrap();
            let mut mode = fs::metadata(&key).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
            fs::set_permissions(&key, mode).unwrap();
            vec!["--auth".into(), "--keyFile".into(), key.display().to_string()]
        });
        server.initiate();
        // From this machine, as long as there is no user, the first may be made.
        let user = doc! { "createUser": "admin", "pwd": "admin", "roles": ["root"] };
        server.on(
            0,
            |client| async move { client.database("admin").run_command(user).await.unwrap() },
        );
        server.credentials = "admin:admin@".into();
        server
    }

    /// With TLS, by a certificate of an authority of its own: `ca.pem` in its folder.
    pub fn start_with_tls() -> Self {
        let mut server = Self::prepared(1, |dir| {
            let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
            fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
            openssl(
                dir,
                &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca -days 2"),
            );
            openssl(
                dir,
                &format!(
                    "req -x509 {key} -keyout other.key -out other.pem -subj /CN=other -days 2"
                ),
            );
            openssl(dir, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
            let serial = "-CAkey ca.key -CAcreateserial -days 2 -extfile san";
            openssl(dir, &format!("x509 -req -in server.csr -CA ca.pem {serial} -out server.crt"));
            let both = ["server.crt", "server.key"]
                .map(|name| fs::read_to_string(dir.join(name)).unwrap());
            fs::write(dir.join("server.pem"), both.concat()).unwrap();
            let path = |name: &str| dir.join(name).display().to_string();
            let options = ["--tlsMode", "requireTLS", "--tlsAllowConnectionsWithoutCertificates"]
                .map(str::to_owned);
            let files = [
                "--tlsCertificateKeyFile".into(),
                path("server.pem"),
                "--tlsCAFile".into(),
                path("ca.pem"),
            ];
            [&options[..], &files[..]].concat()
        });
        server.tls = format!("&tls=true&tlsCAFile={}", server.path("ca.pem").display());
        server.initiate();
        server
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start_with(nodes: usize, options: impl Fn(&Path) -> Vec<String>) -> Self {
        let mut server = Self::prepared(nodes, options);
        server.initiate();
        server
    }

    fn prepared(nodes: usize, options: impl Fn(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        let node = |_| Node { child: None, port: free_port(), options: options.clone() };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let nodes = (0..nodes).map(node).collect();
        let mut server =
            Self { nodes, dir, runtime, credentials: String::new(), tls: String::new() };
        for at in 0..server.nodes.len() {
            fs::create_dir(server.dir.path().join(format!("db{at}"))).unwrap();
            server.run(at);
        }
        server
    }

    fn initiate(&mut self) {
        let member = |(at, node): (usize, &Node)| doc! { "_id": at as i32, "host": format!("127.0.0.1:{}", node.port) };
        let members: Vec<Document> = self.nodes.iter().enumerate().map(member).collect();
        let settings = doc! { "electionTimeoutMillis": 2000 };
        let config =
            doc! { "replSetInitiate": { "_id": "rs0", "members": members, "settings": settings } };
        self.on(0, |client| async move {
            let admin = client.database("admin");
            until("mongod takes its configuration", async || {
                admin.run_command(config.clone()).await.ok()
            })
            .await;
        });
        self.until_primary();
    }

    /// Starts a node (again), without waiting for it.
    pub fn run(&mut self, at: usize) {
        let path = |name: String| self.dir.path().join(name).display().to_string();
        let node = &self.nodes[at];
        let mut command = Command::new(program());
        command.args([
            "--dbpath",
            &path(format!("db{at}")),
            "--logpath",
            &path(format!("log{at}")),
            "--logappend",
        ]);
        command.args([
            "--port",
            &node.port.to_string(),
            "--bind_ip",
            "127.0.0.1",
            "--nounixsocket",
        ]);
        command.args(["--replSet", "rs0", "--oplogSize", "16", "--wiredTigerCacheSizeGB", "0.25"]);
        command.args(["--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)"]);
        for parameter in ["diagnosticDataCollectionEnabled=false", "enableTestCommands=1"] {
            command.args(["--setParameter", parameter]);
        }
        command
            .args(&node.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.nodes[at].child = Some(command.spawn().expect(HINT));
    }

    /// SIGKILL.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut child) = self.nodes[at].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn kill_all(&mut self) {
        (0..self.nodes.len()).for_each(|at| self.kill(at));
    }

    /// Starts what was killed, and waits until the set takes writes.
    pub fn run_all(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].child.is_none() {
                self.run(at);
            }
        }
        self.until_primary();
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub fn port(&self, at: usize) -> u16 {
        self.nodes[at].port
    }

    /// The node that takes writes, once there is one.
    pub fn until_primary(&self) -> usize {
        self.runtime.block_on(async {
            until("there is a primary", async || {
                for (at, node) in
                    self.nodes.iter().enumerate().filter(|(_, node)| node.child.is_some())
                {
                    let admin = direct(node.port, "", &self.tls).await.database("admin");
                    let hello = admin.run_command(doc! { "hello": 1 });
                    let hello = tokio::time::timeout(Duration::from_secs(2), hello).await;
                    if hello.is_ok_and(|it| {
                        it.is_ok_and(|it| it.get_bool("isWritablePrimary").unwrap_or_default())
                    }) {
                        return Some(at);
                    }
                }
                None
            })
            .await
        })
    }

    pub fn uri(&self) -> String {
        self.uri_as(&self.credentials)
    }

    /// `who` is `user:password@`, or nothing.
    pub fn uri_as(&self, who: &str) -> String {
        let hosts: Vec<String> =
            self.nodes.iter().map(|it| format!("127.0.0.1:{}", it.port)).collect();
        format!("mongodb://{who}{}/?replicaSet=rs0{}", hosts.join(","), self.tls)
    }

    /// A conversation with one node, whatever its role.
    pub fn on<T, F: Future<Output = T>>(&self, at: usize, talk: impl FnOnce(Client) -> F) -> T {
        let port = self.nodes[at].port;
        self.runtime
            .block_on(async { talk(direct(port, &self.credentials, &self.tls).await).await })
    }

    pub fn admin(&self, at: usize, command: Document) -> Document {
        self.on(
            at,
            |client| async move { client.database("admin").run_command(command).await.unwrap() },
        )
    }

    /// On the set's primary, in `rollcall`.
    pub fn command(&self, command: Document) -> Document {
        let uri = self.uri();
        self.runtime.block_on(async {
            let client = Client::with_uri_str(uri).await.unwrap();
            client.database("rollcall").run_command(command).await.unwrap()
        })
    }

    /// Everything in a collection of `rollcall`, by `_id`.
    pub fn all(&self, collection: &str) -> Vec<Document> {
        let uri = self.uri();
        self.runtime.block_on(async {
            let client = Client::with_uri_str(uri).await.unwrap();
            let collection = client.database("rollcall").collection::<Document>(collection);
            let mut cursor = collection.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
            let mut found = Vec::new();
            while cursor.advance().await.unwrap() {
                found.push(cursor.deserialize_current().unwrap());
            }
            found
        })
    }

    pub fn count(&self, collection: &str) -> u64 {
        let uri = self.uri();
        self.runtime.block_on(async {
            let client = Client::with_uri_str(uri).await.unwrap();
            client
                .database("rollcall")
                .collection::<Document>(collection)
                .count_documents(doc! {})
                .await
                .unwrap()
        })
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.kill_all();
    }
}

async fn direct(port: u16, who: &str, tls: &str) -> Client {
    let mut options = ClientOptions::parse(format!(
        "mongodb://{who}127.0.0.1:{port}/?directConnection=true{tls}"
    ))
    .await
    .unwrap();
    options.server_selection_timeout = Some(Duration::from_secs(5));
    Client::with_options(options).unwrap()
}

async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let watch = Stopwatch::start();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(watch.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
