//! Nodes over the embedded implementation.
//!
//! In: nothing. Out: [`Node`]s that share one hub. Invariant: its time is only what a test lets pass.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ringway_engine::embedded::{Handle, Hub};

use crate::node::Node;
use crate::suite::Fleet;

/// See the file's header.
pub(crate) struct EmbeddedFleet {
    pub(crate) hub: Rc<RefCell<Hub>>,
    now_ms: Cell<u64>,
}

impl EmbeddedFleet {
    pub(crate) fn new() -> EmbeddedFleet {
        EmbeddedFleet { hub: Hub::new(), now_ms: Cell::new(0) }
    }
}

impl Fleet for EmbeddedFleet {
    fn node(&self) -> Node {
        let handle = Handle::new(&self.hub);
        let id = handle.node();
        let mut node = Node::new(Box::new(handle), id, id.generation);
        node.wait_open();
        node
    }

    fn pass_ms(&self, ms: u64) {
        self.now_ms.set(self.now_ms.get() + ms);
        self.hub.borrow_mut().set_now_ms(self.now_ms.get());
    }
}
