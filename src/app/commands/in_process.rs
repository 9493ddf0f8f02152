//! Executes a command in this process, where no daemon runs: with the same handlers, and so with the
//! same checks, records and replies.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};

use crate::app::commands::commander::Commander;
use crate::app::commands::reply_to::{Request, WrittenReply};
use crate::app::context::Context;
use crate::app::pipeline::inference::{Inference, JOBS_MAX};
use crate::app::state::preview::PreviewFeed;
use crate::recognise::frame::Latest;
use crate::vision::Vision;
use crate::wire::command::Command;

/// Executes a command, with the models in a thread as in the daemon.
pub fn execute(ctx: Context, vision: Vision, command: Command) -> anyhow::Result<WrittenReply> {
    let (jobs, job_queue) = sync_channel(JOBS_MAX);
    let (stop, stopped) = watch::channel(false);
    let slot = Arc::new(Latest::default());
    let feed = Arc::new(PreviewFeed::new(None));
    let inference = Inference::new(ctx.clone(), vision, slot, job_queue, feed, stopped.clone());
    let thread = std::thread::Builder::new()
        .name("inference".to_owned())
        .spawn(move || inference.run())
        .context("cannot start the inference thread")?;
    let (requests, request_queue) = mpsc::channel(1);
    let commander = Commander::new(ctx, jobs, request_queue, None, None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let reply = runtime.block_on(async {
        // No link: nothing arrives here.
        let (_link, mut events) = mpsc::channel(1);
        let (reply, replied) = oneshot::channel();
        let work = async {
            requests.send(Request { command, reply }).await.ok();
            let replied = replied.await;
            stop.send_replace(true);
            replied.context("the command was not executed")
        };
        let (ran, reply) = tokio::join!(commander.run(&mut events, stopped), work);
        ran.and(reply)
    });
    thread.join().map_err(|_| anyhow::anyhow!("the inference thread ended with a panic"))??;
    reply
}
