//! A connection to one server, which in a cluster follows a slot that is just moving to another node.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::sync::Mutex;

use super::access::{Access, Node};

/// Pause before a command that was refused because half of its keys have moved.
const TRY_AGAIN_PAUSE: Duration = Duration::from_millis(20);

/// A connection. It is never made again under the hand: what was written through it, WAIT on it speaks of.
#[derive(Clone)]
pub(super) struct Connection {
    node: MultiplexedConnection,
    /// In a cluster.
    moving: Option<Arc<Moving>>,
    /// Who carried out the last command, if it was another node.
    last: Option<MultiplexedConnection>,
}

/// How a node is reached to which a slot is moving.
pub(super) struct Moving {
    pub(super) access: Access,
    pub(super) asked: Node,
    pub(super) timeout: Duration,
    pub(super) open: Mutex<Option<(Node, MultiplexedConnection)>>,
}

impl Connection {
    pub(super) const fn new(node: MultiplexedConnection, moving: Option<Arc<Moving>>) -> Self {
        Self { node, moving, last: None }
    }

    /// The connection that carried out the last command.
    pub(super) fn used(&mut self) -> &mut MultiplexedConnection {
        self.last.as_mut().unwrap_or(&mut self.node)
    }

    /// Each command of a pipeline goes where its key is: those of one slot move one by one.
    async fn send_all(&mut self, pipeline: &Pipeline, moving: &Moving) -> Result<Vec<Value>, RedisError> {
        let mut answers = self.node.send_packed_commands(pipeline, 0, pipeline.len()).await?;
        for (command, answer) in pipeline.cmd_iter().zip(&mut answers) {
            if matches!(answer, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::Ask)) {
                *answer = self.send(command, moving).await?;
            }
        }
        Ok(answers)
    }

    async fn send(&mut self, command: &Cmd, moving: &Moving) -> Result<Value, RedisError> {
        // The rest of the time belongs to the answer.
        let until = Instant::now() + moving.timeout / 2;
        loop {
            self.last = None;
            let mut answer = self.node.send_packed_command(command).await.and_then(Value::extract_error);
            if let Some(node) = answer.as_ref().err().and_then(|error| moving.target(error)) {
                let mut target = moving.connection(node).await?;
                answer = asking(&mut target, command).await;
                if answer.as_ref().is_err_and(RedisError::is_io_error) {
                    *moving.open.lock().await = None;
                }
                self.last = Some(target);
            }
            let again = answer.as_ref().is_err_and(|error| error.kind() == server(ServerErrorKind::TryAgain));
            if !again || Instant::now() >= until {
                return answer;
            }
            tokio::time::sleep(TRY_AGAIN_PAUSE).await;
        }
    }
}

const fn server(kind: ServerErrorKind) -> ErrorKind {
    ErrorKind::Server(kind)
}

/// Sends a command to a node that is taking its slot over.
async fn asking(target: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    let mut both = redis::pipe();
    both.cmd("ASKING").add_command(command.clone());
    let mut answers = target.send_packed_commands(&both, 0, 2).await?;
    let answer = answers.pop().unwrap_or(Value::Nil);
    // First of all: where that is denied, the answer to the command says that the slot is elsewhere.
    answers.pop().unwrap_or(Value::Nil).extract_error()?;
    answer.extract_error()
}

impl Moving {
    /// Where to ask, if an error says so.
    fn target(&self, error: &RedisError) -> Option<Node> {
        if error.kind() != server(ServerErrorKind::Ask) {
            return None;
        }
        Node::told(error.redirect_node()?.0, &self.asked.host)
    }

    async fn connection(&self, node: Node) -> Result<MultiplexedConnection, RedisError> {
        let mut open = self.open.lock().await;
        if let Some((of, connection)) = &*open
            && *of == node
        {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let client = self.access.at(&node).client().map_err(|error| {
            RedisError::from((ErrorKind::InvalidClientConfig, "no connection can be tried", error.to_string()))
        })?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        *open = Some((node, connection.clone()));
        Ok(connection)
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self.moving.clone() {
            None => self.node.req_packed_command(cmd),
            Some(moving) => async move { self.send(cmd, &moving).await }.boxed(),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self.moving.clone() {
            // A transaction of which one key has moved is refused as a whole.
            Some(moving) if !pipeline.is_transaction() => async move { self.send_all(pipeline, &moving).await }.boxed(),
            _ => self.node.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        self.node.get_db()
    }
}
