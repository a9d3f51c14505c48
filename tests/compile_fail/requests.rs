// SPDX-License-Identifier: GPL-2.0

//! Requests: what their types rule out. See `run` for what the marks mean.

use crate::{
    aio::{
        request::{
            self,
            Slot, //
        },
        Caching,
        Wait, //
    },
    blk_mq::{
        CompletedRequest,
        IdleRequest,
        InFlight,
        Request,
        RequestList,
        StartedRequest,
        Status,
        Submitter, //
    },
    command::Progress,
    device::LoopDevice,
    worker::Workers,
};
use kernel::{
    fs::File,
    prelude::*, //
};

type Started = StartedRequest<LoopDevice>;

fn send<T: Send>(_: T) {}

// A request is completed twice.
fn complete_twice(rq: Started) {
    rq.complete(Ok(0));
    #[cfg(misuse)]
    rq.complete(Ok(0)); //~ E0382
}

// A request is looked at after it was completed.
fn look_after_completion(rq: Started) {
    rq.complete(Ok(0));
    #[cfg(misuse)]
    rq.len(); //~ E0382
}

// A request is looked at after the file got it: bug class 2.
fn look_after_submission(rq: Started) {
    drop(request::submit(rq, 0, Caching::Direct, Wait::Allowed));
    #[cfg(misuse)]
    rq.op(); //~ E0382
}

// A request is looked at after the block device got it: bug class 2.
fn look_after_remapping(rq: Started) {
    drop(request::remap(rq, 0, Wait::Allowed));
    #[cfg(misuse)]
    rq.op(); //~ E0382
}

// A request is looked at after a worker got it.
fn look_after_queueing(workers: &Workers, device: &LoopDevice, rq: Started) {
    workers.submit(device, rq, true);
    #[cfg(misuse)]
    rq.op(); //~ E0382
}

// A request is put on two lists: bug class 5.
fn list_twice(one: &RequestList<LoopDevice>, other: &RequestList<LoopDevice>, rq: Started) {
    one.push(rq);
    #[cfg(misuse)]
    other.push(rq); //~ E0382
    let _ = other;
}

// What a request needs of its device is used after the request: bug class 4.
fn target_after_completion(rq: Started) {
    let target = rq.io();
    let _ = target.is_some();
    #[cfg(misuse)]
    rq.complete(Ok(0)); //~ E0505
    #[cfg(misuse)]
    let _ = target.is_some();
}

// What a request needs of its device is used though there may be none: bug class 4.
fn target_of_unbound(rq: &Request<LoopDevice>) -> Option<&File> {
    let target = rq.io();
    #[cfg(misuse)]
    return Some(&target.file); //~ E0609
    #[cfg(not(misuse))]
    target.map(|target| &*target.file)
}

// A request changes what others need of its device.
fn change_target(rq: &Request<LoopDevice>) {
    if let Some(target) = rq.io() {
        #[cfg(misuse)]
        {
            target.offset = 0; //~ E0594
        }
        let _ = target.offset;
    }
}

// A request that is not started is completed.
fn complete_idle(rq: IdleRequest<LoopDevice>) {
    #[cfg(misuse)]
    rq.complete(Ok(0)); //~ E0599
    #[cfg(not(misuse))]
    rq.start().complete(Ok(0));
}

// A request is started twice.
fn start_twice(rq: IdleRequest<LoopDevice>) {
    rq.start().complete(Ok(0));
    #[cfg(misuse)]
    rq.start().complete(Ok(0)); //~ E0382
}

// A request is refused and started: the block layer and the driver would end it.
fn refuse_and_start(rq: IdleRequest<LoopDevice>) {
    let _ = rq.refuse(Status::IOERR);
    #[cfg(misuse)]
    rq.start().complete(Ok(0)); //~ E0382
}

// A request that is under way is ended.
fn end_in_flight(rq: Started) {
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0599
    #[cfg(not(misuse))]
    rq.complete(Ok(0));
}

// A request that is split in two owners is completed by the whole.
fn split_and_complete(rq: Started) {
    let _owners = rq.into_in_flight();
    #[cfg(misuse)]
    rq.complete(Ok(0)); //~ E0382
}

// One of two owners completes a request twice.
fn owner_completes_twice(rq: InFlight<LoopDevice>) {
    rq.complete(Ok(0));
    #[cfg(misuse)]
    rq.complete(Ok(0)); //~ E0382
}

// One of two owners sends a request round again, which the other may use.
fn owner_requeues(rq: InFlight<LoopDevice>) {
    #[cfg(misuse)]
    rq.requeue(); //~ E0599
    #[cfg(not(misuse))]
    rq.complete(Err(EIO));
}

// A request is ended twice.
fn end_twice(rq: CompletedRequest<LoopDevice>) {
    rq.end(Status::OK);
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0382
}

// A request is ended after it was sent round again.
fn requeue_and_end(rq: CompletedRequest<LoopDevice>) {
    rq.requeue();
    #[cfg(misuse)]
    rq.end(Status::OK); //~ E0382
}

// A request is made from what the kernel gave back, by who cannot promise anything.
fn from_nothing(data: *const Slot<Progress>) {
    #[cfg(misuse)]
    InFlight::<LoopDevice>::from_data(data).complete(Ok(0)); //~ E0133
    let _ = data;
}

// The context of a submitter goes to another task.
fn send_submitter(submitter: Submitter) {
    #[cfg(misuse)]
    send(submitter); //~ E0277
    #[cfg(not(misuse))]
    drop(submitter);
}

// A reference that a frozen queue waits for is kept by another task.
fn send_queue_reference(rq: &Request<LoopDevice>) {
    let queue = rq.keep_queue();
    #[cfg(misuse)]
    send(queue); //~ E0277
    #[cfg(not(misuse))]
    drop(queue);
}
