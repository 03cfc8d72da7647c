//! A shard that plays its part of the internal contract with the toy model, checks what it is told, and can be made to fail.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use asterism_proto::PROTOCOL_VERSION;
use asterism_proto::shard::v1::shard_server::{Shard, ShardServer};
use asterism_proto::shard::v1::*;
use futures::Stream;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::kv::Kv;
use crate::toy;

pub const BLOCK_ROWS: u32 = 16;

/// What a test makes a shard do.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Plans are taken and not reported.
    pub paused: bool,
    /// The same for those after this step.
    pub pause_after: Option<u64>,
    /// The same for all, until it has been joined so often.
    pub paused_until_join: u32,
    /// Rows are not to be had, until it has been joined so often.
    pub rows_lost_until_join: u32,
    /// A plan with this id ends the epoch.
    pub breaks_on: Option<u32>,
    /// The evidence of a row with this id is an error.
    pub poison: Option<u32>,
    /// Says that it will leave.
    pub draining: bool,
}

impl Control {
    fn pauses(&self, step: u64, joins: u32) -> bool {
        self.paused || joins < self.paused_until_join || self.pause_after.is_some_and(|last| step > last)
    }
}

/// What a test sees.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub holder: Option<Holder>,
    pub open: bool,
    pub joins: u32,
    pub steps: u64,
    pub fetches: u32,
    /// First spans.
    pub starts: u32,
    pub drained: bool,
    pub live: BTreeMap<u64, Sequence>,
    pub kv: Kv,
    pub violations: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Sequence {
    pub ids: Vec<u32>,
    pub prompt_len: usize,
    pub setting: Setting,
    pub blocks: Vec<u32>,
}

pub struct FakeShard {
    pub address: SocketAddr,
    pub description: DescribeResponse,
    pub control: watch::Sender<Control>,
    pub seen: watch::Receiver<Seen>,
    killed: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

/// Stage `stage` of `stages` of the toy model, with one layer a stage.
pub fn describe(stage: u32, stages: u32) -> DescribeResponse {
    DescribeResponse {
        protocol_version: PROTOCOL_VERSION,
        pipeline: "toy".to_owned(),
        stage,
        stages,
        first_layer: stage,
        end_layer: stage + 1,
        model: Some(ModelSpec {
            family: "toy".to_owned(),
            layers: stages,
            hidden: 8,
            vocab_size: toy::VOCAB,
            max_positions: 256,
            rope_base_length: 0,
        }),
        checkpoint_id: "c0ffee".to_owned(),
        compute: Compute::F32.into(),
        device: "toy".to_owned(),
        kv_blocks: 64,
        block_rows: BLOCK_ROWS,
        max_rows: 64,
        max_evidence_rows: 16,
        logits_slots: 64,
        max_steps_in_flight: 8,
        ..DescribeResponse::default()
    }
}

impl FakeShard {
    pub async fn start(description: DescribeResponse) -> Self {
        Self::start_at(description, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(description: DescribeResponse, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (control, _) = watch::channel(Control::default());
        let (seen_sender, seen) = watch::channel(Seen::default());
        let killed = CancellationToken::new();
        let service = Service(Arc::new(Shared {
            description: description.clone(),
            control: control.clone(),
            seen: seen_sender,
            plays: Mutex::default(),
            killed: killed.clone(),
        }));
        let server = tonic::transport::Server::builder()
            .add_service(ShardServer::new(service))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), killed.clone().cancelled_owned());
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { address, description, control, seen, killed, server }
    }

    /// Ends it and all its streams at once; returns what a new one needs to stand in its place.
    pub async fn kill(self) -> (DescribeResponse, SocketAddr) {
        self.killed.cancel();
        self.server.await.unwrap();
        (self.description, self.address)
    }

    /// Waits until `holds` of what is seen.
    pub async fn until(&self, holds: impl FnMut(&Seen) -> bool) -> Seen {
        self.seen.clone().wait_for(holds).await.unwrap().clone()
    }
}

struct Shared {
    description: DescribeResponse,
    control: watch::Sender<Control>,
    seen: watch::Sender<Seen>,
    /// The raw row's ids and setting of each kept evidence row.
    plays: Mutex<BTreeMap<(u64, u32), Sequence>>,
    killed: CancellationToken,
}

#[derive(Clone)]
struct Service(Arc<Shared>);

type Responses<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Shard for Service {
    type RunStream = Responses<RunResponse>;
    type ActivationsStream = Responses<ActivationsResponse>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let seen = self.0.seen.borrow();
        Ok(Response::new(DescribeResponse {
            holder_lives: seen.open,
            holder: seen.holder.clone(),
            draining: self.0.control.borrow().draining,
            ..self.0.description.clone()
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let JoinRequest { holder, take_over, downstream_address, .. } = request.into_inner();
        let holder = holder.unwrap();
        let last = self.0.description.stage + 1 == self.0.description.stages;
        let mut answer = Ok(Response::new(JoinResponse::default()));
        self.0.seen.send_modify(|seen| {
            if downstream_address.is_empty() != last {
                seen.violations.push(format!("downstream address \"{downstream_address}\""));
            }
            if let Some(current) = &seen.holder {
                if current.driver_id != holder.driver_id && seen.open && !take_over {
                    answer = Err(Status::failed_precondition(format!("held by {}", current.driver_id)));
                    return;
                }
                if holder.epoch <= current.epoch {
                    answer = Err(Status::failed_precondition("not a greater epoch"));
                    return;
                }
            }
            seen.holder = Some(holder);
            seen.open = false;
            seen.joins += 1;
            seen.steps = 0;
            seen.live.clear();
            seen.kv = Kv::default();
        });
        answer
    }

    async fn run(
        &self,
        request: Request<Streaming<RunRequest>>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let mut requests = request.into_inner();
        let Some(RunRequest { message: Some(run_request::Message::Open(holder)) }) =
            requests.message().await?
        else {
            return Err(Status::invalid_argument("not opened"));
        };
        if self.0.seen.borrow().holder.as_ref() != Some(&holder) {
            return Err(Status::failed_precondition("not the holder"));
        }
        self.0.seen.send_modify(|seen| seen.open = true);
        let (responses, stream) = mpsc::channel(64);
        let service = self.clone();
        tokio::spawn(async move {
            let killed = service.0.killed.clone();
            let opened = RunResponse { message: Some(run_response::Message::Opened(holder.clone())) };
            let _ = responses.send(Ok(opened)).await;
            let end = tokio::select! {
                end = service.play(&holder, &mut requests, &responses) => end,
                () = killed.cancelled() => Err(Status::unavailable("killed")),
                () = service.fenced(&holder) => Err(Status::failed_precondition("a greater epoch came")),
            };
            service.0.seen.send_modify(|seen| seen.open &= seen.holder.as_ref() != Some(&holder));
            if let Err(status) = end {
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn activations(
        &self,
        _: Request<Streaming<ActivationsRequest>>,
    ) -> Result<Response<Self::ActivationsStream>, Status> {
        Err(Status::unimplemented("the toy model sends none"))
    }

    async fn fetch_logits(
        &self,
        request: Request<FetchLogitsRequest>,
    ) -> Result<Response<FetchLogitsResponse>, Status> {
        let request = request.into_inner();
        self.0.seen.send_modify(|seen| seen.fetches += 1);
        if self.0.seen.borrow().joins < self.0.control.borrow().rows_lost_until_join {
            return Err(Status::failed_precondition("the epoch is over"));
        }
        let plays = self.0.plays.lock().unwrap();
        let Some(play) = plays.get(&(request.sequence, request.position)) else {
            return Err(Status::not_found("no such row"));
        };
        let bytes =
            |row: Vec<f32>| row.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>().into();
        let processed = bytes(toy::processed(&play.ids, play.prompt_len, &play.setting));
        let raw = if request.raw_too { bytes(toy::raw(&play.ids)) } else { Default::default() };
        Ok(Response::new(FetchLogitsResponse { processed, raw }))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        self.0.seen.send_modify(|seen| seen.drained = true);
        Ok(Response::new(DrainResponse {}))
    }
}

impl Service {
    async fn fenced(&self, holder: &Holder) {
        let mut seen = self.0.seen.subscribe();
        let _ = seen.wait_for(|seen| seen.holder.as_ref() != Some(holder)).await;
    }

    async fn play(
        &self,
        holder: &Holder,
        requests: &mut Streaming<RunRequest>,
        responses: &mpsc::Sender<Result<RunResponse, Status>>,
    ) -> Result<(), Status> {
        let mut control = self.0.control.subscribe();
        let mut beats = tokio::time::interval(Duration::from_millis(50));
        let mut layers_done = 0;
        let joins = self.0.seen.borrow().joins;
        loop {
            tokio::select! {
                request = requests.message() => {
                    let Some(RunRequest { message: Some(run_request::Message::Plan(plan)) }) = request? else {
                        return Ok(());
                    };
                    let mut fed = plan.spans.iter().flat_map(|span| &span.token_ids);
                    if control.borrow().breaks_on.is_some_and(|id| fed.any(|fed| *fed == id)) {
                        return Err(Status::internal("broken"));
                    }
                    let report = self.step(holder, &plan).inspect_err(|status| {
                        self.0.seen.send_modify(|seen| seen.violations.push(status.message().to_owned()));
                    })?;
                    while control.borrow_and_update().pauses(plan.step, joins) {
                        tokio::select! {
                            changed = control.changed() => changed.unwrap(),
                            _ = beats.tick() => self.beat(layers_done, true, responses).await,
                        }
                    }
                    layers_done += 1;
                    let report = RunResponse { message: Some(run_response::Message::Report(report)) };
                    let _ = responses.send(Ok(report)).await;
                }
                _ = beats.tick() => self.beat(layers_done, false, responses).await,
            }
        }
    }

    async fn beat(
        &self,
        layers_done: u64,
        working: bool,
        responses: &mpsc::Sender<Result<RunResponse, Status>>,
    ) {
        let draining = self.0.control.borrow().draining;
        let beat = run_response::Message::Beat(Beat { layers_done, working, draining });
        let _ = responses.send(Ok(RunResponse { message: Some(beat) })).await;
    }

    fn step(&self, holder: &Holder, plan: &StepPlan) -> Result<StepReport, Status> {
        let mut report = Err(Status::internal("not played"));
        self.0.seen.send_modify(|seen| report = self.apply(seen, holder, plan));
        report
    }

    fn apply(&self, seen: &mut Seen, holder: &Holder, plan: &StepPlan) -> Result<StepReport, Status> {
        let check = |holds: bool, what: String| {
            if holds { Ok(()) } else { Err(Status::invalid_argument(what)) }
        };
        let shard = &self.0.description;
        check(plan.epoch == holder.epoch, format!("epoch {} in {}", plan.epoch, holder.epoch))?;
        check(plan.step == seen.steps + 1, format!("step {} after {}", plan.step, seen.steps))?;
        seen.steps = plan.step;
        let mut kept = self.0.plays.lock().unwrap();
        for ended in &plan.ended {
            check(seen.live.remove(ended).is_some(), format!("unknown sequence {ended} ended"))?;
            kept.retain(|(sequence, _), _| sequence != ended);
        }
        let rows: usize = plan.spans.iter().map(|span| span.token_ids.len()).sum();
        check(rows <= shard.max_rows as usize, format!("{rows} rows"))?;
        let mut evidence = Vec::new();
        for span in &plan.spans {
            if let Some(start) = &span.start {
                seen.starts += 1;
                let new = Sequence {
                    prompt_len: start.prompt_len as usize,
                    setting: start.setting.clone().unwrap_or_default(),
                    ..Sequence::default()
                };
                let old = seen.live.insert(span.sequence, new);
                check(old.is_none(), format!("sequence {} starts twice", span.sequence))?;
            }
            let Some(sequence) = seen.live.get_mut(&span.sequence) else {
                return Err(Status::invalid_argument(format!("sequence {} has not started", span.sequence)));
            };
            kept.retain(|(other, _), _| *other != span.sequence);
            check(span.setting_id == sequence.setting.id, format!("setting {}", span.setting_id))?;
            let first = span.first_position as usize;
            if !span.blocks.is_empty() {
                sequence.blocks.truncate(span.table_offset as usize);
                sequence.blocks.extend(&span.blocks);
            }
            let cached = seen.kv.read(&sequence.blocks, first);
            if let Some(start) = &span.start {
                let none_wanted = start.prior_ids.is_empty() && !toy::has_penalties(&sequence.setting);
                check(none_wanted || start.prior_ids == cached, format!("prior ids {:?}", start.prior_ids))?;
                sequence.ids.clone_from(&cached);
            }
            check(first == sequence.ids.len(), format!("position {first} after {}", sequence.ids.len()))?;
            check(sequence.ids == cached, "a block table with rows of others".to_owned())?;
            sequence.ids.extend(&span.token_ids);
            let enough = sequence.blocks.len() * BLOCK_ROWS as usize >= sequence.ids.len();
            check(enough, format!("{} blocks for {} rows", sequence.blocks.len(), sequence.ids.len()))?;
            for position in &span.evidence_positions {
                let row = Sequence { ids: sequence.ids[..=*position as usize].to_vec(), ..sequence.clone() };
                evidence.push(self.evidence(&row, span));
                kept.insert((span.sequence, *position), row);
            }
        }
        let mut used = seen.live.values().flat_map(|sequence| &sequence.blocks);
        check(used.all(|block| *block < shard.kv_blocks), "an unknown block".to_owned())?;
        check(seen.kv.write(plan, &seen.live), "a block written for two sequences".to_owned())?;
        check(
            evidence.len() <= shard.max_evidence_rows as usize,
            format!("{} evidence rows", evidence.len()),
        )?;
        let last = shard.stage + 1 == shard.stages;
        Ok(StepReport {
            epoch: plan.epoch,
            step: plan.step,
            evidence: if last { evidence } else { Vec::new() },
            times: Some(StageTimes { busy: 1000, ..StageTimes::default() }),
        })
    }

    fn evidence(&self, row: &Sequence, span: &Span) -> Evidence {
        let control = self.0.control.borrow();
        let evidence = toy::evidence(&row.ids, row.prompt_len, &row.setting, span);
        match row.ids.last() {
            Some(id) if control.poison == Some(*id) => Evidence {
                sequence: evidence.sequence,
                position: evidence.position,
                error: Some("a logit is not finite".to_owned()),
                ..Evidence::default()
            },
            _ => evidence,
        }
    }
}
