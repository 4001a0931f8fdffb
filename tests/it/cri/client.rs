//! As much of a client of CRI as the tests need: kubelet's calls, over gRPC.
//!
//! The messages are those of `api.proto` of Kubernetes (cri-api, runtime/v1), with the fields that
//! are used here.

use std::time::Duration;

use h2::client;
use http::{HeaderMap, Request};
use prost::Message;
use prost::bytes::Bytes;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

const SOCKET: &str = "/run/containerd/containerd.sock";

/// A call may run a checkpoint.
const LIMIT: Duration = Duration::from_secs(60);

/// `NODE` of `NamespaceMode`: the namespace of the machine.
const NODE: i32 = 2;

#[derive(Clone, Message)]
pub struct Pod {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPod>,
}

#[derive(Clone, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, Message)]
struct LinuxPod {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<Pod>,
    #[prost(string, tag = "2")]
    runtime_handler: String,
}

/// What many calls take, and many answer: one identifier or name.
#[derive(Clone, Message)]
struct One {
    #[prost(string, tag = "1")]
    value: String,
}

#[derive(Clone, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<Pod>,
}

/// Its metadata and its image begin with a name each.
#[derive(Clone, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<One>,
    #[prost(message, optional, tag = "2")]
    image: Option<One>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
}

#[derive(Clone, Message)]
struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    output: Vec<u8>,
    #[prost(int32, tag = "3")]
    status: i32,
}

#[derive(Clone, Message)]
struct CheckpointContainer {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, tag = "2")]
    location: String,
}

/// Calls about an image, and an answer: all begin with it.
#[derive(Clone, Message)]
struct OfImage {
    #[prost(message, optional, tag = "1")]
    image: Option<One>,
}

/// A connection for each call, driven by the calling thread alone.
pub struct Cri {
    runtime: Runtime,
}

impl Cri {
    pub fn new() -> Self {
        Self { runtime: Builder::new_current_thread().enable_all().build().unwrap() }
    }

    pub fn has_image(&self, image: &str) -> bool {
        let request = OfImage { image: Some(one(image)) };
        let answer: OfImage =
            self.call("ImageService/ImageStatus", &request).expect("the image's status");
        answer.image.is_some()
    }

    pub fn pull(&self, image: &str) {
        let request = OfImage { image: Some(one(image)) };
        self.call::<One>("ImageService/PullImage", &request).expect("pulling the image");
    }

    /// Runs a pod on the machine's network.
    #[track_caller]
    pub fn run_pod(&self, name: &str, cgroup: &str, handler: &str) -> (String, Pod) {
        let namespaces = Some(Namespaces { network: NODE });
        let pod = Pod {
            metadata: Some(PodMetadata {
                name: name.into(),
                uid: name.into(),
                namespace: "test".into(),
            }),
            linux: Some(LinuxPod {
                cgroup_parent: cgroup.into(),
                security: Some(Security { namespaces }),
            }),
        };
        let request = RunPod { config: Some(pod.clone()), runtime_handler: handler.into() };
        let answer: One = self.runs("RunPodSandbox", &request).expect("running the pod");
        (answer.value, pod)
    }

    /// Makes a container of an image, or of an archive of a checkpoint, and starts it.
    pub fn start(
        &self,
        (pod, config): &(String, Pod),
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String, String> {
        let container = ContainerConfig {
            metadata: Some(one(name)),
            image: Some(one(image)),
            command: command.iter().map(ToString::to_string).collect(),
        };
        let request = CreateContainer {
            pod: pod.clone(),
            config: Some(container),
            pod_config: Some(config.clone()),
        };
        let created: One = self.runs("CreateContainer", &request)?;
        self.runs::<One>("StartContainer", &created)?;
        Ok(created.value)
    }

    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String, String> {
        let command = command.iter().map(ToString::to_string).collect();
        let request = ExecSync { container: container.into(), command };
        let answer: Executed = self.runs("ExecSync", &request)?;
        let output = String::from_utf8(answer.output).unwrap();
        if answer.status == 0 { Ok(output) } else { Err(output) }
    }

    pub fn checkpoint(&self, container: &str, archive: &str) -> Result<(), String> {
        let request = CheckpointContainer { container: container.into(), location: archive.into() };
        self.runs::<One>("CheckpointContainer", &request).map(drop)
    }

    /// Ends a container, or a pod with all in it, and removes it.
    pub fn remove(&self, what: &str, id: &str) {
        for step in ["Stop", "Remove"] {
            let _ = self.runs::<One>(&format!("{step}{what}"), &one(id));
        }
    }

    fn runs<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, String> {
        self.call(&format!("RuntimeService/{method}"), request)
    }

    fn call<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, String> {
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(LIMIT, exchange(method, request.encode_to_vec())).await
        });
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}")));
        println!("{method}: {answer:?}");
        Ok(A::decode(answer?.as_slice()).unwrap())
    }
}

fn one(value: &str) -> One {
    One { value: value.into() }
}

/// One call of gRPC (its doc/PROTOCOL-HTTP2.md): a message each way, behind five bytes.
async fn exchange(method: &str, message: Vec<u8>) -> Result<Vec<u8>, String> {
    let told = |error: h2::Error| error.to_string();
    let socket = UnixStream::connect(SOCKET).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = client::handshake(socket).await.map_err(told)?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://localhost/runtime.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut stream) = sender.send_request(request, false).map_err(told)?;
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0][..], &length, &message].concat();
    stream.send_data(Bytes::from(framed), true).map_err(told)?;

    let (head, mut body) = response.await.map_err(told)?.into_parts();
    let mut answer = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(told)?;
        body.flow_control().release_capacity(data.len()).map_err(told)?;
        answer.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.map_err(told)?.unwrap_or(head.headers);
    succeeded(&trailers)?;
    Ok(answer.split_off(5.min(answer.len())))
}

fn succeeded(trailers: &HeaderMap) -> Result<(), String> {
    let value = |name: &str| {
        let value = trailers.get(name).map(http::HeaderValue::as_bytes).unwrap_or_default();
        String::from_utf8_lossy(value).into_owned()
    };
    if value("grpc-status") == "0" { Ok(()) } else { Err(value("grpc-message")) }
}
