//! How requests are laid out for the kernels, and their results read. Pure.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::cpu::evidence::{CHUNK, finish};
use crate::{EvidenceRequest, EvidenceRoom, Processors, RowEvidence, TensorError};

/// Rows of a pass at most: more do not make it faster.
const MOST_ROWS: usize = 128;

/// Bytes of an upload, unless a single row may need more.
const MOST_UPLOAD: usize = 32 << 20;

/// What a pass has memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassRoom {
    pub rows: usize,
    pub vocab: usize,
    pub upload_bytes: usize,
    pub result_bytes: usize,
}

/// Addresses on the card.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub logits: u64,
    /// Where raw rows are kept, if they are.
    pub slots: Option<u64>,
    pub processed: u64,
    pub upload: u64,
    pub results: u64,
}

/// The kernels' `EvidenceRow`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct RowJob {
    pub raw: u64,
    pub slot: u64,
    pub processed: u64,
    pub ids: u64,
    pub bias: u64,
    pub allowed: u64,
    pub id_count: u32,
    pub prompt_len: u32,
    pub bias_count: u32,
    pub search_raw: u32,
    pub repetition: f32,
    pub presence: f32,
    pub frequency: f32,
    pub unused: u32,
}

/// The kernels' `Search`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct SearchJob {
    pub row: u64,
    pub raw: u64,
    pub out: u64,
    pub list: u32,
    pub best: u32,
}

/// The kernels' `Sum`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct SumJob {
    pub row: u64,
    pub out: u64,
    pub temperature: f64,
    pub list: u32,
    pub unused: u32,
}

/// The kernels' `Candidate`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Found {
    pub id: u32,
    pub logit: f32,
    pub raw: f32,
}

/// What every row of a pass takes of the upload, at most.
const JOB_BYTES: usize = size_of::<RowJob>() + 2 * size_of::<SearchJob>() + 2 * size_of::<SumJob>();

/// A pass: what was laid out, and where its results will be.
#[derive(Debug)]
pub struct Pass {
    /// The first so many requests.
    pub rows: usize,
    pub searches: usize,
    pub searches_at: usize,
    pub sums: usize,
    pub sums_at: usize,
    pub upload_bytes: usize,
    pub non_finite_at: usize,
    pub result_bytes: usize,
    vocab: usize,
    answers: Vec<Answer>,
}

/// Where the results of a row are.
#[derive(Debug, Default)]
struct Answer {
    best: Range<usize>,
    raw_best: Option<Range<usize>>,
    sum: Option<usize>,
    raw_sum: Option<usize>,
}

impl PassRoom {
    pub fn new(room: EvidenceRoom) -> PassRoom {
        let EvidenceRoom { vocab, top_k, ids, .. } = room;
        let rows = room.rows.clamp(1, MOST_ROWS);
        let sum = (1 + vocab.div_ceil(CHUNK)) * size_of::<f64>();
        let (ids, bias, mask) = (ids * 4, vocab * 8, vocab.div_ceil(8));
        let [ids, bias, mask] = [ids, bias, mask].map(|bytes| bytes.next_multiple_of(ALIGN));
        let upload = (rows * (JOB_BYTES + ids + mask)).min(MOST_UPLOAD).max(JOB_BYTES + ids + bias + mask);
        PassRoom {
            rows,
            vocab,
            upload_bytes: upload,
            result_bytes: rows * (2 * sum + size_of::<u32>() + 2 * top_k * size_of::<Found>()),
        }
    }
}

/// Of every area of an upload.
const ALIGN: usize = 16;

/// Bytes of the upload for a row's processors.
fn processors_bytes(processors: &Processors<'_>) -> usize {
    let ids = if processors.has_penalties() { size_of_val(processors.ids) } else { 0 };
    [ids, processors.bias.len() * 8, processors.allowed.len()]
        .map(|bytes| bytes.next_multiple_of(ALIGN))
        .iter()
        .sum()
}

impl Pass {
    /// Lays out the first of `requests`, as many as there is room for, in `upload`.
    pub fn lay_out(
        requests: &[EvidenceRequest<'_>],
        room: &PassRoom,
        places: &Places,
        upload: &mut [u8],
    ) -> Result<Pass, TensorError> {
        let mut bytes = 0;
        let fits = requests.iter().take(room.rows).take_while(|request| {
            bytes += JOB_BYTES + processors_bytes(&request.processors);
            bytes <= room.upload_bytes
        });
        let rows = fits.count();
        if rows == 0 {
            // A single row always fits the room that it was checked against.
            return Err(TensorError::Capacity { rows: bytes, capacity: room.upload_bytes });
        }
        let requests = &requests[..rows];
        let sum_count = |request: &EvidenceRequest<'_>| {
            usize::from(request.temperature.is_some()) + usize::from(request.logprobs.is_some())
        };
        let sums: usize = requests.iter().map(sum_count).sum();
        let sum_bytes = (1 + room.vocab.div_ceil(CHUNK)) * size_of::<f64>();
        let non_finite_at = sums * sum_bytes;
        let mut layout = Layout {
            room,
            places,
            payload: Payload { bytes: upload, used: rows * JOB_BYTES },
            sum_bytes,
            found_at: non_finite_at + rows * size_of::<u32>(),
            jobs: Vec::with_capacity(rows),
            searches: Vec::with_capacity(2 * rows),
            raw_searches: Vec::new(),
            sums: Vec::with_capacity(sums),
        };
        let answers = requests.iter().map(|request| layout.row(request)).collect();
        let Layout { payload, found_at, jobs, mut searches, raw_searches, sums, .. } = layout;
        searches.extend(raw_searches);
        let (searches_at, sums_at) = (size_of_val(&*jobs), size_of_val(&*jobs) + size_of_val(&*searches));
        let Payload { bytes, used } = payload;
        bytes[..searches_at].copy_from_slice(bytemuck::cast_slice(&jobs));
        bytes[searches_at..sums_at].copy_from_slice(bytemuck::cast_slice(&searches));
        bytes[sums_at..][..size_of_val(&*sums)].copy_from_slice(bytemuck::cast_slice(&sums));
        Ok(Pass {
            rows,
            searches: searches.len(),
            searches_at,
            sums: sums.len(),
            sums_at,
            upload_bytes: used,
            non_finite_at,
            result_bytes: found_at,
            vocab: room.vocab,
            answers,
        })
    }

    /// Appends what the kernels found to `told`. `requests` begin with those that were laid out.
    pub fn read(&self, requests: &[EvidenceRequest<'_>], results: &[u8], told: &mut Vec<RowEvidence>) {
        let non_finite = results[self.non_finite_at..].chunks_exact(size_of::<u32>());
        let rows = requests.iter().zip(&self.answers).zip(non_finite);
        told.extend(rows.map(|((request, answer), non_finite)| {
            let non_finite: u32 = bytemuck::pod_read_unaligned(non_finite);
            let mut row = RowEvidence {
                non_finite: (non_finite != u32::MAX).then_some(non_finite),
                processed_log_sum_exp: request
                    .temperature
                    .zip(answer.sum)
                    .map(|(temperature, at)| self.log_sum_exp(results, at, temperature)),
                raw_log_sum_exp: answer.raw_sum.map(|at| self.log_sum_exp(results, at, 1.0)),
                ..RowEvidence::default()
            };
            for found in self.found(results, &answer.best).take(request.top_k) {
                row.ids.push(found.id);
                row.processed.push(found.logit);
                row.raw.push(found.raw);
            }
            let raw_best = answer.raw_best.iter().flat_map(|range| self.found(results, range));
            for found in raw_best.take(request.logprobs.unwrap_or(0)) {
                row.raw_best_ids.push(found.id);
                row.raw_best.push(found.raw);
            }
            row
        }));
    }

    fn log_sum_exp(&self, results: &[u8], at: usize, temperature: f64) -> f64 {
        let numbers = results[at..].chunks_exact(size_of::<f64>()).take(1 + self.vocab.div_ceil(CHUNK));
        let numbers: Vec<f64> = numbers.map(bytemuck::pod_read_unaligned).collect();
        match numbers.split_first() {
            Some((&max, sums)) => finish(max, sums, temperature),
            None => f64::NEG_INFINITY,
        }
    }

    fn found(&self, results: &[u8], range: &Range<usize>) -> impl Iterator<Item = Found> {
        results[range.clone()].chunks_exact(size_of::<Found>()).map(bytemuck::pod_read_unaligned)
    }
}

/// A pass that is being laid out.
struct Layout<'a> {
    room: &'a PassRoom,
    places: &'a Places,
    payload: Payload<'a>,
    sum_bytes: usize,
    /// Where the next search's results will be.
    found_at: usize,
    jobs: Vec<RowJob>,
    /// The first of each row.
    searches: Vec<SearchJob>,
    raw_searches: Vec<SearchJob>,
    sums: Vec<SumJob>,
}

/// What is uploaded beside the jobs.
struct Payload<'a> {
    bytes: &'a mut [u8],
    used: usize,
}

impl Layout<'_> {
    fn row(&mut self, request: &EvidenceRequest<'_>) -> Answer {
        let (index, processors) = (self.jobs.len(), &request.processors);
        let row_at = |base: u64, row: usize| base + (row * self.room.vocab * size_of::<f32>()) as u64;
        let raw = row_at(self.places.logits, request.row);
        let slot = self.places.slots.map_or(0, |slots| row_at(slots, request.slot));
        let plain = processors.is_plain();
        let processed = if plain { 0 } else { row_at(self.places.processed, index) };
        let job = self.job(processors);
        let search_raw = u32::from(plain || request.logprobs.is_some());
        self.jobs.push(RowJob { raw, slot, processed, search_raw, ..job });

        let (row, list) = if plain { (raw, index) } else { (processed, self.room.rows + index) };
        let (list, raw_list) = (list as u32, index as u32);
        let mut answer = Answer::default();
        let raw_best = request.logprobs.filter(|&count| count > 0);
        // A plain row is searched once, for all that is wanted of it.
        let best = if plain { request.top_k.max(raw_best.unwrap_or(0)) } else { request.top_k };
        let (search, range) = self.search(SearchJob { row, raw, out: 0, list, best: best as u32 });
        self.searches.push(search);
        answer.best = range.clone();
        if let Some(best) = raw_best {
            answer.raw_best = Some(range);
            if !plain {
                let job = SearchJob { row: raw, raw, out: 0, list: raw_list, best: best as u32 };
                let (search, range) = self.search(job);
                self.raw_searches.push(search);
                answer.raw_best = Some(range);
            }
        }
        answer.sum = request.temperature.map(|temperature| self.sum(row, list, temperature));
        answer.raw_sum = request.logprobs.map(|_| self.sum(raw, raw_list, 1.0));
        answer
    }

    /// Lays out a row's processors.
    fn job(&mut self, processors: &Processors<'_>) -> RowJob {
        let &Processors { repetition, presence, frequency, .. } = processors;
        let ids = if processors.has_penalties() { processors.ids } else { &[] };
        let payload = &mut self.payload;
        let upload = self.places.upload;
        RowJob {
            ids: upload + payload.take(bytemuck::cast_slice(ids)) as u64,
            bias: upload + payload.take_bias(processors.bias) as u64,
            allowed: match processors.allowed {
                [] => 0,
                allowed => upload + payload.take(allowed) as u64,
            },
            id_count: ids.len() as u32,
            prompt_len: processors.prompt_len.min(ids.len()) as u32,
            bias_count: processors.bias.len() as u32,
            repetition,
            presence,
            frequency,
            ..RowJob::zeroed()
        }
    }

    /// Takes room for what a search will find.
    fn search(&mut self, job: SearchJob) -> (SearchJob, Range<usize>) {
        let start = self.found_at;
        self.found_at += self.room.vocab.min(job.best as usize) * size_of::<Found>();
        (SearchJob { out: self.places.results + start as u64, ..job }, start..self.found_at)
    }

    fn sum(&mut self, row: u64, list: u32, temperature: f64) -> usize {
        let at = self.sums.len() * self.sum_bytes;
        self.sums.push(SumJob { row, out: self.places.results + at as u64, temperature, list, unused: 0 });
        at
    }
}

impl Payload<'_> {
    /// Takes the bytes in; where they begin.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let area = self.area(bytes.len());
        self.bytes[area.clone()].copy_from_slice(bytes);
        area.start
    }

    fn take_bias(&mut self, bias: &[(u32, f32)]) -> usize {
        let area = self.area(8 * bias.len());
        for (to, (id, value)) in self.bytes[area.clone()].chunks_exact_mut(8).zip(bias) {
            to[..4].copy_from_slice(&id.to_le_bytes());
            to[4..].copy_from_slice(&value.to_le_bytes());
        }
        area.start
    }

    fn area(&mut self, bytes: usize) -> Range<usize> {
        let start = self.used;
        self.used += bytes.next_multiple_of(ALIGN);
        start..start + bytes
    }
}
