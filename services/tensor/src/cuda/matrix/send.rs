//! Weights on their way to a card.

use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::cpu::pack::check_size;
use crate::cuda::Cuda;
use crate::cuda::matrix::CardMatrix;
use crate::cuda::matrix::load::{Loader, Unpacking};
use crate::cuda::memory::DeviceMemory;
use crate::cuda::staging::parts::Place;
use crate::cuda::staging::queue::Queue;
use crate::cuda::staging::room::Twins;
use crate::cuda::staging::{self, Job, SLOTS_EACH};
use crate::cuda::stream::Event;
use crate::storage::Storage;
use crate::weights::{Elements, KeptColumns, PART};
use crate::{Columns, Compute, Dtype, Embedding, Layout, Matrix, MatrixBuilder, TensorError};

/// Makes matrices and embeddings whose elements come later; see [`crate::Device::send_weights`].
pub struct Sender<'s, 'a> {
    loader: &'s Loader,
    queue: &'s Queue<Job<'a, Unpacking>>,
}

/// Rows of a table that lies in memory, in this order.
struct Rows<'a> {
    table: &'a [u8],
    /// Bytes of a row.
    row: usize,
    picks: &'a [u32],
}

impl Cuda {
    /// See [`crate::Device::send_weights`].
    pub(crate) fn send_weights<'a, T, E: From<TensorError>>(
        &self,
        threads: NonZeroUsize,
        work: impl FnOnce(&Sender<'_, 'a>) -> Result<T, E>,
    ) -> Result<T, E> {
        let queue = Queue::new();
        let card = &**self.card();
        let twins = Twins::of(threads.get() * SLOTS_EACH);
        let sender = Sender { loader: &self.weights, queue: &queue };
        let done = staging::send(&queue, threads, &|| self.weights.slot(&twins), || work(&sender));
        self.weights.clear_room();
        // Operations come after what has been sent, whatever became of the rest.
        let landed = Event::new(card.context())?;
        landed.record(&card.copies)?;
        card.compute.wait(&landed)?;
        done
    }

    /// A matrix of columns that lie in memory.
    pub(crate) fn matrix(&self, builder: MatrixBuilder<'_>) -> Result<CardMatrix, TensorError> {
        let outputs = builder.check()?;
        let most = builder.groups.iter().map(|group| group.bytes.len().div_ceil(PART)).sum();
        let threads = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN).min(staging::threads());
        self.send_weights(threads, |sender| {
            let shape = [outputs, builder.inputs];
            let memory = sender.memory(shape, builder.compute.dtype())?;
            let mut first_output = 0;
            for group in &builder.groups {
                let (columns, select) = in_memory(group, builder.inputs);
                sender.push(
                    columns,
                    select,
                    (&memory, builder.inputs, first_output, builder.compute.dtype()),
                )?;
                first_output += group.selected();
            }
            CardMatrix::new(builder.compute, shape, memory, builder.bias.as_deref())
        })
    }
}

impl<'a> Sender<'_, 'a> {
    /// A matrix of `inputs` rows and the columns of all groups, in order, with a bias for each of them.
    ///
    /// # Errors
    /// Sizes that do not fit each other; no memory; the sending has ended.
    pub fn matrix(
        &self,
        inputs: usize,
        compute: Compute,
        groups: Vec<KeptColumns<'a>>,
        bias: Option<&[f32]>,
    ) -> Result<Matrix, TensorError> {
        let outputs = groups.iter().map(|group| group.outputs).sum();
        for group in &groups {
            check_size([inputs, group.outputs], group.dtype, group.elements.bytes())?;
        }
        if let Some(bias) = bias.filter(|bias| bias.len() != outputs) {
            return Err(TensorError::Bias { columns: outputs, got: bias.len() });
        }
        let memory = self.memory([outputs, inputs], compute.dtype())?;
        let mut first_output = 0;
        for group in groups {
            let columns = group.outputs;
            self.push(group, None, (&memory, inputs, first_output, compute.dtype()))?;
            first_output += columns;
        }
        CardMatrix::new(compute, [outputs, inputs], memory, bias).map(Matrix::on_card)
    }

    /// An embedding table `[vocab, cols]`.
    ///
    /// # Errors
    /// As for a matrix.
    pub fn embedding(
        &self,
        dtype: Dtype,
        [vocab, cols]: [usize; 2],
        elements: Box<dyn Elements + 'a>,
        compute: Compute,
    ) -> Result<Embedding, TensorError> {
        check_size([cols, vocab], dtype, elements.bytes())?;
        let stored = if compute == Compute::Bf16 { Dtype::Bf16 } else { dtype };
        let memory = self.memory([vocab, cols], stored)?;
        let rows = KeptColumns { elements, dtype, layout: Layout::OutputsFirst, outputs: vocab };
        self.push(rows, None, (&memory, cols, 0, stored))?;
        Ok(Embedding::with(stored, [vocab, cols], Storage::Card(memory)))
    }

    fn memory(&self, [outputs, inputs]: [usize; 2], stored: Dtype) -> Result<DeviceMemory, TensorError> {
        let bytes = outputs.saturating_mul(inputs).saturating_mul(stored.bytes());
        DeviceMemory::unwritten(self.loader.card().context(), bytes)
    }

    /// Sends checked columns to their place: the outputs from the first given on, of a matrix with so many inputs.
    fn push(
        &self,
        KeptColumns { elements, dtype, layout, outputs: columns }: KeptColumns<'a>,
        select: Option<&[u32]>,
        (memory, inputs, first_output, to): (&DeviceMemory, usize, usize, Dtype),
    ) -> Result<(), TensorError> {
        let outputs = select.map_or(columns, <[u32]>::len);
        if outputs == 0 || inputs == 0 {
            return Ok(());
        }
        let card = self.loader.card();
        let upload = |select| DeviceMemory::holding(card.context(), bytemuck::cast_slice(select));
        let target = Unpacking {
            kernels: self.loader.kernels(dtype, to).clone(),
            memory: memory.clone(),
            place: Place { inputs, first_output, layout, from: dtype, to },
            columns,
            select: select.map(upload).transpose()?,
            outputs,
            card: Arc::clone(card),
        };
        let parts = elements.bytes().div_ceil(PART);
        self.queue.push(Job { elements, target }, parts)
    }
}

/// Columns that lie in memory, with the selection where the card has to see to it.
fn in_memory<'a>(group: &Columns<'a>, inputs: usize) -> (KeptColumns<'a>, Option<&'a [u32]>) {
    let &Columns { bytes, dtype, layout, outputs, select } = group;
    match (layout, select) {
        (Layout::OutputsFirst, Some(picks)) => {
            let rows = Rows { table: bytes, row: inputs * dtype.bytes(), picks };
            (KeptColumns { elements: Box::new(rows), dtype, layout, outputs: picks.len() }, None)
        }
        (_, select) => (KeptColumns { elements: Box::new(bytes), dtype, layout, outputs }, select),
    }
}

impl Elements for Rows<'_> {
    fn bytes(&self) -> usize {
        self.row * self.picks.len()
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut at = offset;
        let mut left = to;
        while !left.is_empty() {
            let (row, within) = (at / self.row, at % self.row);
            let from = &self.table[self.picks[row] as usize * self.row..][within..self.row];
            let (now, later) = left.split_at_mut(from.len().min(left.len()));
            now.copy_from_slice(&from[..now.len()]);
            at += now.len();
            left = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picked_rows_are_read_from_anywhere() {
        let table: Vec<u8> = (0..20).collect();
        let rows = Rows { table: &table, row: 5, picks: &[3, 0, 0] };
        let whole: Vec<u8> = [15..20, 0..5, 0..5].into_iter().flatten().collect();
        assert_eq!(rows.bytes(), whole.len());
        for (start, end) in [(0, 15), (3, 4), (4, 11), (10, 15), (7, 7)] {
            let mut to = vec![0xff; end - start];
            rows.read(start, &mut to).unwrap();
            assert_eq!(to, whole[start..end]);
        }
    }
}
