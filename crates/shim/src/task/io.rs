//! ResizePty and CloseIO.

use std::rc::Rc;

use containerd_shim_protos::api::{CloseIORequest, Empty, ResizePtyRequest};

use super::exec_of;
use super::pod::Pod;
use crate::error::Error;

/// Sets the size of a terminal; without one nothing happens, and that is no error.
pub(super) async fn resize_pty(pod: Rc<Pod>, req: ResizePtyRequest) -> Result<Empty, Error> {
    let size = |field, value: u32| u16::try_from(value).map_err(|_| Error::Size { field, value });
    let (columns, rows) = (size("width", req.width)?, size("height", req.height)?);
    let terminal = pod.with_ends(&req.id, exec_of(&req.exec_id), |ends| {
        ends.terminal().cloned()
    })?;
    if let Some(terminal) = terminal {
        terminal.resize(columns, rows)?;
    }
    Ok(Empty::default())
}

/// Closes the shim's end of stdin: the process sees end of file once containerd closed its own.
pub(super) async fn close_io(pod: Rc<Pod>, req: CloseIORequest) -> Result<Empty, Error> {
    pod.with_ends(&req.id, exec_of(&req.exec_id), |ends| {
        if req.stdin {
            ends.close_stdin();
        }
    })?;
    Ok(Empty::default())
}
