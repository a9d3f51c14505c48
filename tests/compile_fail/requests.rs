// SPDX-License-Identifier: GPL-2.0

//! Misuse of requests that the types reject. See `run` for the meaning of the marks.

use crate::{
    aio::{
        request,
        Caching,
        Wait, //
    },
    blk_mq::{
        IdleRequest,
        InFlight,
        Operations,
        Request,
        RequestList,
        StartedRequest,
        Status,
        Submitter, //
    },
    datapath::target::{
        LoopQueue,
        Target, //
    },
};
use kernel::{
    prelude::*,
    time::Delta, //
};

type Started = StartedRequest<LoopQueue>;

fn send<T: Send>(_: T) {}

// A request is ended twice.
fn end_twice(rq: Started) {
    rq.end(Status::OK);
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0382
}

// A request is used after it was ended.
fn use_after_end(rq: Started) {
    rq.end(Status::OK);
    #[cfg(misuse)]
    rq.len(); //~ E0382
}

// A request is used after it was submitted to the file: bug class 2.
fn use_after_submission(rq: Started) {
    request::submit(rq, 0, 4096, Caching::Direct, Wait::Allowed);
    #[cfg(misuse)]
    rq.op(); //~ E0382
}

// A request is used after it was submitted to the block device: bug class 2.
fn use_after_remapping(rq: Started) {
    request::remap(rq, 0, 4096, Wait::Allowed);
    #[cfg(misuse)]
    rq.op(); //~ E0382
}

// A request is put on two lists, such as those of two workers: bug class 5.
fn list_twice(one: &RequestList<LoopQueue>, other: &RequestList<LoopQueue>, rq: Started) {
    one.push(rq);
    #[cfg(misuse)]
    other.push(rq); //~ E0382
    let _ = other;
}

// The backend of a request is used after the request has ended: bug class 4.
fn backend_after_end(rq: Started) {
    let target = rq.backend();
    let _ = target.offset;
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0505
    #[cfg(misuse)]
    let _ = target.offset;
}

// The backend of a request is used before it is known that there is one: bug class 4.
fn backend_of_idle(rq: IdleRequest<LoopQueue>) {
    #[cfg(misuse)]
    let _ = rq.backend().offset; //~ E0599
    #[cfg(not(misuse))]
    let _ = rq.start().map(|rq| rq.backend().offset);
}

// A request changes the backend, which other requests use.
fn change_backend(target: &Target) {
    #[cfg(misuse)]
    {
        target.offset = 0; //~ E0594
    }
    let _ = target.offset;
}

// The driver's part of a request is changed while it is read.
fn change_data(mut rq: Started) {
    let data = rq.data();
    #[cfg(misuse)]
    let _ = rq.data_mut(); //~ E0502
    let _ = data.driver();
    #[cfg(not(misuse))]
    let _ = rq.data_mut();
}

// The driver's part of a request in flight is changed, which the operation may read.
fn change_data_in_flight(rq: InFlight<LoopQueue>) {
    #[cfg(misuse)]
    let _ = rq.data_mut(); //~ E0599
    rq.finish(Ok(0));
}

// A request that is not started is submitted.
fn submit_idle(rq: IdleRequest<LoopQueue>) {
    #[cfg(misuse)]
    request::submit(rq, 0, 4096, Caching::Direct, Wait::Allowed); //~ E0308
    #[cfg(not(misuse))]
    if let Ok(rq) = rq.start() {
        request::submit(rq, 0, 4096, Caching::Direct, Wait::Allowed);
    }
}

// A request is started twice.
fn start_twice(rq: IdleRequest<LoopQueue>) {
    drop(rq.start());
    #[cfg(misuse)]
    drop(rq.start()); //~ E0382
}

// A request is refused and started: the block layer and the driver would end it.
fn refuse_and_start(rq: IdleRequest<LoopQueue>) {
    let _ = rq.refuse(Status::IOERR);
    #[cfg(misuse)]
    drop(rq.start()); //~ E0382
}

// A request in flight is ended.
fn end_in_flight(rq: InFlight<LoopQueue>) {
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0599
    #[cfg(not(misuse))]
    rq.finish(Ok(0));
}

// A request that was split in two owners is ended by the whole.
fn split_and_end(rq: Started) {
    let _owners = rq.into_in_flight(Err(EIO));
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0382
}

// One of two owners completes a request twice.
fn owner_completes_twice(rq: InFlight<LoopQueue>) {
    rq.finish(Ok(0));
    #[cfg(misuse)]
    rq.finish(Ok(0)); //~ E0382
}

// One of two owners requeues a request, which the other one may use.
fn owner_requeues(rq: InFlight<LoopQueue>) {
    #[cfg(misuse)]
    rq.requeue_later(Delta::from_millis(1)); //~ E0599
    #[cfg(not(misuse))]
    rq.finish(Err(EIO));
}

// A request is ended after it was requeued.
fn requeue_and_end(rq: Started) {
    rq.requeue_later(Delta::from_millis(1));
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0382
}

// An owner is made from a pointer by safe code, which cannot promise that there is one.
fn from_nothing(data: *const <LoopQueue as Operations>::RequestData) {
    #[cfg(misuse)]
    InFlight::<LoopQueue>::from_data(data).finish(Ok(0)); //~ E0133
    let _ = data;
}

// The context of a submitter is sent to another task.
fn send_submitter(submitter: Submitter) {
    #[cfg(misuse)]
    send(submitter); //~ E0277
    #[cfg(not(misuse))]
    drop(submitter);
}

// A reference that freezing the queue waits for is sent to another task.
fn send_queue_reference(rq: &Request<LoopQueue>) {
    let queue = rq.get_queue();
    #[cfg(misuse)]
    send(queue); //~ E0277
    #[cfg(not(misuse))]
    drop(queue);
}
