//! Launchers of kernels/elementwise.cu.

use super::CudaBackend;
use super::check::{expect_attention, expect_here};
use super::walk::Walk;
use crate::device::cuda::{Arguments, DeviceMemory, stream};
use crate::types::{Error, Result, Status, Tensor};

impl CudaBackend {
    /// See `Backend::cast`.
    pub(super) fn convert(&self, src: &Tensor, dst: &Tensor, accumulate: bool) -> Result<()> {
        for (name, t) in [("src", src), ("dst", dst)] {
            expect_attention(self.gpu(), name, t)?;
        }
        src.expect_shape("src", dst.shape())?;
        if dst.elements() == 0 {
            return Ok(());
        }
        let walk = Walk::converting(&[src, dst], 0, &[0, 0]);
        let (from, to, add) = (src.data(), dst.data(), i32::from(accumulate));
        let mut arguments = Arguments::new();
        arguments.push(&walk).push(&from).push(&to).push(&add);
        let name = format!("cast_{}_{}", src.dtype().name(), dst.dtype().name());
        // SAFETY: parameters as in kernels/elementwise.cu; the walk stays on elements of both tensors.
        unsafe { self.launch_over("elementwise", &name, walk.units, &mut arguments) }
    }

    /// See `Backend::divide`.
    pub(super) fn divide_by(&self, dst: &Tensor, by: i64) -> Result<()> {
        expect_attention(self.gpu(), "dst", dst)?;
        if by == 0 {
            return Err(Error::argument("by is 0; it must not be"));
        }
        if dst.elements() == 0 {
            return Ok(());
        }
        let walk = Walk::converting(&[dst], 0, &[0]);
        let (at, by) = (dst.data(), by as f64);
        let mut arguments = Arguments::new();
        arguments.push(&walk).push(&at).push(&by);
        let name = format!("divide_{}", dst.dtype().name());
        // SAFETY: as in `convert`.
        unsafe { self.launch_over("elementwise", &name, walk.units, &mut arguments) }
    }

    /// See `Backend::fill_zero`.
    pub(super) fn zero(&self, dst: &Tensor) -> Result<()> {
        expect_here(self.gpu(), "dst", dst)?;
        if dst.elements() == 0 {
            return Ok(());
        }
        let walk = Walk::moving(&[dst], 0, &[0]);
        let at = dst.data();
        let mut arguments = Arguments::new();
        arguments.push(&walk).push(&at);
        // SAFETY: as in `convert`; all bytes zero is zero in every dtype.
        unsafe { self.launch_over("elementwise", "fill_zero", walk.units, &mut arguments) }
    }

    /// See `Backend::has_nan`. Allocates and waits, as an answer on the host must: refused while the stream is captured.
    pub(super) fn search_nan(&self, t: &Tensor) -> Result<bool> {
        expect_here(self.gpu(), "tensor", t)?;
        if !t.dtype().is_attention() || t.elements() == 0 {
            return Ok(false);
        }
        if stream::is_capturing(self.gpu(), self.stream())? {
            let message = "looking for NaN waits for the answer, which is not possible while the stream is captured into \
                           a graph; switch MAGI_ATTENTION_SANITY_CHECK off";
            return Err(Error::new(Status::NotSupported, message));
        }
        let found = DeviceMemory::upload(self.gpu(), &[0; 4])?;
        let walk = Walk::converting(&[t], 0, &[0]);
        let (at, flag) = (t.data(), found.as_ptr());
        let mut arguments = Arguments::new();
        arguments.push(&walk).push(&at).push(&flag);
        let name = format!("has_nan_{}", t.dtype().name());
        // SAFETY: as in `convert`; the flag lives until the stream is done.
        unsafe { self.launch_over("elementwise", &name, walk.units, &mut arguments) }?;
        stream::synchronize(self.gpu(), self.stream())?;
        let mut answer = [0; 4];
        found.read(0, &mut answer)?;
        Ok(answer != [0; 4])
    }
}
