//! The one owner of a shim's state: the sandbox and what the door knows of its containers.
//!
//! No borrow lives across an `await`: calls run interleaved, and each looks again at what it
//! needs after it has waited.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use berm_sandbox::{Args, Config, Event, Host, Sandbox, Stdio};
use tokio::sync::{Notify, mpsc};

use crate::error::{self, Error};
use crate::event::Origin;
use crate::stdio::{self, Ends, Paths};

/// The pod that this shim serves.
pub(crate) struct Pod {
    namespace: String,
    config: Config,
    /// What the host is like, once it was asked.
    host: RefCell<Option<Rc<Host>>>,
    events: mpsc::UnboundedSender<Event>,
    sandbox: RefCell<Option<Sandbox>>,
    containers: RefCell<BTreeMap<String, Container>>,
    /// Shutdown was asked for; containerd does not ask again.
    shutdown: Cell<bool>,
    changed: Notify,
}

/// What the door keeps of a container until its Delete.
#[derive(Debug, Default)]
pub(super) struct Container {
    pub(super) origin: Origin,
    /// Host uid and gid that its stdio belongs to.
    pub(super) io_owner: Option<(u32, u32)>,
    pub(super) ends: Ends,
    pub(super) execs: BTreeMap<String, Exec>,
}

/// What the door keeps of an exec until its Delete.
#[derive(Debug, Default)]
pub(super) struct Exec {
    pub(super) paths: Paths,
    pub(super) ends: Ends,
}

impl Pod {
    pub(crate) fn new(
        namespace: &str,
        config: Config,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        Self {
            namespace: namespace.to_owned(),
            config,
            host: RefCell::default(),
            events,
            sandbox: RefCell::default(),
            containers: RefCell::default(),
            shutdown: Cell::new(false),
            changed: Notify::new(),
        }
    }

    /// Asks the host what it is like, and makes what every pod needs, before the first Create has
    /// to wait for it. A failure is told there.
    pub(crate) fn prepare(&self) {
        let prepared = self.host().and_then(|host| Ok(host.prepare()?));
        if let Err(e) = prepared {
            log::warn!(err = error::chain(&e); "this host cannot run pods as it is");
        }
    }

    fn host(&self) -> Result<Rc<Host>, Error> {
        if let Some(host) = &*self.host.borrow() {
            return Ok(host.clone());
        }
        let host = Rc::new(Host::detect(self.config.clone())?);
        *self.host.borrow_mut() = Some(host.clone());
        Ok(host)
    }

    /// Makes the sandbox, with the configuration that came along or else the shim's own.
    /// # Errors
    /// `FailedPrecondition` if there is one; those of the sandbox.
    pub(super) async fn make_sandbox(
        &self,
        id: &str,
        bundle: &str,
        spec: berm_sandbox::Spec,
        config: Option<Config>,
    ) -> Result<Sandbox, Error> {
        if let Some(have) = self.sandbox() {
            return Err(Error::SecondSandbox {
                have: have.id().to_owned(),
                id: id.to_owned(),
            });
        }
        let host = match config {
            Some(config) => Rc::new(Host::detect(config)?),
            None => self.host()?,
        };
        let args = Args::new(id, &self.namespace, bundle, spec);
        let sandbox = Sandbox::create(host, args, self.events.clone()).await?;
        // Somebody may have been faster.
        if let Some(have) = self.sandbox() {
            sandbox.destroy().await;
            return Err(Error::SecondSandbox {
                have: have.id().to_owned(),
                id: id.to_owned(),
            });
        }
        let isolation = &sandbox.record().isolation;
        if let Some(because) = &isolation.because {
            log::warn!(isolation = "host", because;
                "the pod has no user namespace: it is not a security boundary");
        }
        *self.sandbox.borrow_mut() = Some(sandbox.clone());
        Ok(sandbox)
    }

    /// Lets go of a sandbox that has ended.
    pub(super) fn forget_sandbox(&self) {
        self.sandbox.borrow_mut().take();
    }

    pub(super) fn sandbox(&self) -> Option<Sandbox> {
        self.sandbox.borrow().clone()
    }

    /// The sandbox, for a call that names a container.
    /// # Errors
    /// `NotFound` for what this door has not made: without a sandbox there is no container, and
    /// those that the control socket made are no business of containerd's.
    pub(super) fn sandbox_of(&self, id: &str) -> Result<Sandbox, Error> {
        let known = self.containers.borrow().contains_key(id);
        self.sandbox()
            .filter(|_| known)
            .ok_or_else(|| Error::NoContainer { id: id.to_owned() })
    }

    /// Opens the streams of a process; `id` is the container's, for an exec the exec's.
    /// # Errors
    /// Those of [`stdio::open`].
    pub(super) async fn open_stdio(
        &self,
        process: stdio::Process,
        paths: &Paths,
        owner: Option<(u32, u32)>,
        id: &str,
    ) -> Result<(Stdio, Ends), Error> {
        let who = stdio::Who {
            namespace: &self.namespace,
            id,
        };
        stdio::open(process, paths, owner, who, self.config.stage_deadline).await
    }

    /// Keeps the id for a container that is being made.
    /// # Errors
    /// `AlreadyExists`
    pub(super) fn reserve(&self, id: &str, container: Container) -> Result<(), Error> {
        match self.containers.borrow_mut().entry(id.to_owned()) {
            Entry::Occupied(_) => Err(Error::ContainerExists { id: id.to_owned() }),
            Entry::Vacant(vacant) => {
                vacant.insert(container);
                Ok(())
            }
        }
    }

    /// Forgets a container; what is returned still holds its stdio.
    pub(super) fn remove(&self, id: &str) -> Option<Container> {
        let container = self.containers.borrow_mut().remove(id);
        self.changed.notify_one();
        container
    }

    /// Looks at a container, or changes it.
    /// # Errors
    /// `NotFound`
    pub(super) fn with<T>(
        &self,
        id: &str,
        act: impl FnOnce(&mut Container) -> T,
    ) -> Result<T, Error> {
        let mut containers = self.containers.borrow_mut();
        let container = containers.get_mut(id);
        container
            .map(act)
            .ok_or_else(|| Error::NoContainer { id: id.to_owned() })
    }

    /// The stdio of a container or of one of its execs.
    /// # Errors
    /// `NotFound`
    pub(super) fn with_ends<T>(
        &self,
        id: &str,
        exec: Option<&str>,
        act: impl FnOnce(&mut Ends) -> T,
    ) -> Result<T, Error> {
        let Some(exec) = exec else {
            return self.with(id, |container| act(&mut container.ends));
        };
        self.with(id, |container| {
            container
                .execs
                .get_mut(exec)
                .map(|exec| act(&mut exec.ends))
        })?
        .ok_or_else(|| Error::NoExec {
            id: id.to_owned(),
            exec: exec.to_owned(),
        })
    }

    /// What Create was asked for.
    pub(crate) fn origin(&self, id: &str) -> Option<Origin> {
        self.containers
            .borrow()
            .get(id)
            .map(|container| container.origin.clone())
    }

    /// Remembers that the shim shall end once nothing is left.
    pub(super) fn shut_down(&self) {
        self.shutdown.set(true);
        self.changed.notify_one();
    }

    /// Waits until Shutdown was asked for and nothing is left of the pod.
    pub(crate) async fn ended(&self) {
        loop {
            let empty = self.containers.borrow().is_empty()
                && self.sandbox.borrow().as_ref().is_none_or(Sandbox::is_empty);
            if self.shutdown.get() && empty {
                return;
            }
            self.changed.notified().await;
        }
    }

    /// Ends every process of the pod, because the shim was told to go.
    pub(crate) async fn destroy(&self, why: &str) {
        log::warn!(why; "the pod is destroyed");
        if let Some(sandbox) = self.sandbox() {
            sandbox.destroy().await;
        }
        // Loggers are told to end while there is still somebody to tell them.
        self.containers.borrow_mut().clear();
    }
}

/// A `config.json`, read, parsed and dropped.
/// # Errors
/// The errno of open(2) or read(2); `InvalidArgument` with line and column, or the refusal of a
/// field.
pub(super) fn spec(bundle: &str) -> Result<berm_sandbox::Spec, Error> {
    let path = std::path::Path::new(bundle).join("config.json");
    let bytes = crate::file::read(&path, crate::start::SPEC_LIMIT)?;
    let spec = berm_sandbox::Spec::parse(&bytes).map_err(berm_sandbox::Error::from)?;
    Ok(spec)
}
