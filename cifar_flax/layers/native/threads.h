/* What XLA hands to a handler, and tasks on the threads of its pool. */

#pragma once

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "vectors.h"
#include "xla/ffi/api/c_api.h"

static const float *argument(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->args.args[k])->data;
}
static const i64 *argument_shape(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->args.args[k])->dims;
}
static float *result(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->rets.rets[k])->data;
}
static const i64 *result_shape(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->rets.rets[k])->dims;
}

/* Attribute k; XLA sorts them by name, so that padding comes before stride. */
static i64 attribute(XLA_FFI_CallFrame *frame, i64 k) {
  return *(i64 *)((XLA_FFI_Scalar *)frame->attrs.attrs[k])->value;
}

/* XLA asks each handler once for the version of the interface that it was built for. */
static int is_query(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Metadata_Extension *query = (void *)frame->extension_start;
  if (!query || query->extension_base.type != XLA_FFI_Extension_Metadata) return 0;
  query->metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  query->metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

typedef void Run(const void *work, i64 task, i64 worker);

typedef struct {
  atomic_long next, done, workers, owners;
  i64 tasks;
  Run *run;
  const void *work;
} Job;

static void leave(Job *job) {
  if (atomic_fetch_sub(&job->owners, 1) == 1) free(job);
}

/* Takes tasks until none is left; a helper that starts late finds none. */
static void take_tasks(void *data) {
  Job *job = data;
  i64 worker = atomic_fetch_add(&job->workers, 1);
  for (i64 task; (task = atomic_fetch_add(&job->next, 1)) < job->tasks;) {
    job->run(job->work, task, worker);
    atomic_fetch_add(&job->done, 1);
  }
  leave(job);
}

/* Whether a call of XLA succeeded; its error is freed. */
static int succeeded(XLA_FFI_CallFrame *frame, XLA_FFI_Error *error) {
  if (!error) return 1;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&args);
  return 0;
}

/* Runs all tasks on this thread and on those of XLA's pool. It waits for the end of tasks
   that others have begun, but never for a thread to begin: all may be in calls like this. */
static void run_tasks(XLA_FFI_CallFrame *frame, i64 tasks, Run *run, const void *work) {
  i64 threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE,
                                              NULL, frame->ctx, &threads};
  Job *job = malloc(sizeof *job);
  if (!job || !succeeded(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&count))) threads = 1;
  if (!job || threads == 1) {
    free(job);
    for (i64 task = 0; task < tasks; task++) run(work, task, 0);
    return;
  }
  i64 helpers = min(min(threads, tasks), MAX_WORKERS) - 1;
  *job = (Job){.owners = 2 + helpers, .tasks = tasks, .run = run, .work = work};
  for (i64 i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args schedule = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE,
                                                 NULL, frame->ctx, take_tasks, job};
    if (!succeeded(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&schedule))) leave(job);
  }
  take_tasks(job);
  while (atomic_load(&job->done) < tasks) sched_yield();
  leave(job);
}
