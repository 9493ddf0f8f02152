//! ONNX Runtime: found, loaded once, version-checked; and the options with which every model
//! runs.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::bounded_file;
use crate::vision::manifest::ModelError;

/// ONNX Runtime has some 20 MB.
const LIBRARY_BYTES_MAX: u64 = 256 << 20;

/// The version that `models/fetch.sh` pins, that everything was measured with, and that packages
/// carry.
pub const PINNED_VERSION: &str = "1.32.0";

static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

/// Read by ONNX Runtime when it is loaded.
const NO_TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// ONNX Runtime 1.32 reports every process that loads it to its maker: it keeps a device id and the
/// pending reports below `~/.cache/Microsoft`, and sends it to
/// mobile.events.data.microsoft.com. The call that turns this off comes after the first report;
/// only this variable, set before the library is loaded, keeps it silent.
///
/// To be called first thing in `main`. Tests and benches have the variable from
/// `.cargo/config.toml`.
pub fn forbid_telemetry() {
    #[expect(
        unsafe_code,
        clippy::disallowed_methods,
        reason = "a C library is configured by the environment only"
    )]
    // SAFETY: `main` calls this before there is a second thread that could read the environment
    // meanwhile.
    unsafe {
        std::env::set_var(NO_TELEMETRY, "1");
    }
}

/// Where the library is searched for, in this order: as configured, by the environment, beside an installed package, and where `make setup` puts it in a source tree.
pub fn candidates(configured: Option<&Path>, models: &Path) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path.to_owned()];
    }
    let mut places: Vec<PathBuf> =
        std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).into_iter().collect();
    places.push(PathBuf::from("/usr/lib/rollcall/libonnxruntime.so"));
    let fetched =
        Path::new(".cache/onnxruntime").join(std::env::consts::ARCH).join("libonnxruntime.so");
    // Beside the models, not below the working directory: that may be writable for others.
    places.push(models.join("..").join(fetched));
    places
}

/// Loads the library unless that was done before. ONNX Runtime can be loaded once in a process.
pub fn load(configured: Option<&Path>, models: &Path) -> Result<&'static Environment, ModelError> {
    if let Some(environment) = ENVIRONMENT.get() {
        return Ok(environment);
    }
    let places = candidates(configured, models);
    let Some(path) = places.iter().find(|path| path.is_file()) else {
        let tried: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        return Err(ModelError::NoRuntime { tried: tried.join(", ") });
    };
    let absolute = path.canonicalize().unwrap_or_else(|_| path.clone());
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| ModelError::Runtime {
        path: path.clone(),
        source,
    };
    // `ort` checks the library's version and rejects one that lacks what it needs.
    let builder = ort::init_from(&absolute).map_err(|e| unusable(Box::new(e)))?;
    let environment = builder
        .with_name("rollcall")
        .with_telemetry(false)
        .build()
        .map_err(|e| unusable(Box::new(e)))?;
    Ok(ENVIRONMENT.get_or_init(|| environment))
}

/// A session over a model in memory.
pub fn session(
    environment: &Environment,
    path: &Path,
    model: &[u8],
    threads: usize,
) -> Result<Session, ModelError> {
    open(environment, model, threads)
        .map_err(|source| ModelError::Session { path: path.to_owned(), source: Box::new(source) })
}

#[expect(
    clippy::result_large_err,
    reason = "the error of ort's builder carries the builder; made once at start"
)]
fn open(environment: &Environment, model: &[u8], threads: usize) -> ort::Result<Session> {
    let mut builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .and_then(|it| it.with_intra_threads(threads))
        .and_then(|it| it.with_inter_threads(1))
        // Spinning threads burn a Raspberry Pi's battery and heat between frames, and win nothing
        // at this pace.
        .and_then(|it| it.with_intra_op_spinning(false))
        .and_then(SessionBuilder::with_flush_to_zero)
        .map_err(ort::Error::<()>::from)?;
    if int8_saturates() {
        builder = builder.with_precise_qmm().map_err(ort::Error::<()>::from)?;
    }
    builder.commit_from_memory(model)
}

/// x86 without VNNI multiplies int8 through 16-bit sums that saturate: cosine of a template to
/// float .979 instead of .993. ONNX Runtime has a precise way, which costs a quarter of the
/// embedder's time; ARM needs neither (`models/README.md`).
fn int8_saturates() -> bool {
    #[cfg(target_arch = "x86_64")]
    return !(std::is_x86_feature_detected!("avx512vnni")
        || std::is_x86_feature_detected!("avxvnni"));
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the library that would be loaded is of the pinned version, by the version of its
/// symbols; `None` when there is no library. An older one than the crate needs is refused by
/// [`load`]; any other works, but was not measured.
pub fn is_pinned(configured: Option<&Path>, models: &Path) -> Option<bool> {
    let path = candidates(configured, models).into_iter().find(|path| path.is_file())?;
    let library = bounded_file::read(&path, LIBRARY_BYTES_MAX).ok()?;
    let version = format!("VERS_{PINNED_VERSION}\0");
    Some(library.windows(version.len()).any(|bytes| bytes == version.as_bytes()))
}
