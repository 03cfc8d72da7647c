use std::sync::Mutex;

use asterism_process::channel::Traffic;
use asterism_process::dial::Dial;
use asterism_process::inproc::Registry;
use futures::stream::{iter, pending};

use super::*;

/// A stage that takes plans, and answers what it was told to.
#[derive(Debug)]
struct Stage {
    holder: Holder,
    answers: Mutex<Vec<Result<RunResponse, Status>>>,
    taken: Arc<Mutex<Vec<StepPlan>>>,
}

impl RunDoor for Stage {
    fn open(&self, holder: &Holder) -> Result<RunCall, Status> {
        if *holder != self.holder {
            return Err(Status::failed_precondition("not the present one"));
        }
        let taken = Arc::clone(&self.taken);
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        Ok(RunCall {
            plans: Box::new(move |plan| taken.lock().unwrap().push(plan)),
            responses: iter(answers).chain(pending()).boxed(),
        })
    }
}

fn holder(epoch: u64) -> Holder {
    Holder { epoch, driver_id: "a".to_owned() }
}

fn answer(message: run_response::Message) -> Result<RunResponse, Status> {
    Ok(RunResponse { message: Some(message) })
}

#[tokio::test]
async fn a_stage_with_a_door_is_driven_through_it() {
    // Nobody listens: what is said through the door needs no connection.
    let dial = Dial::new("inproc:nobody", Traffic::Internal, &Registry::default()).unwrap();
    let mut client = ShardClient::new(dial.lazy());
    let report = StepReport { epoch: 3, step: 7, ..StepReport::default() };
    let answers = vec![
        answer(run_response::Message::Opened(holder(3))),
        answer(run_response::Message::Report(report.clone())),
        Err(Status::unavailable("it leaves")),
    ];
    let taken = Arc::<Mutex<Vec<StepPlan>>>::default();
    let (answers, seen) = (Mutex::new(answers), Arc::clone(&taken));
    let stage: Arc<dyn RunDoor> = Arc::new(Stage { holder: holder(3), answers, taken });

    let mut streams = Streams::new(1, 2);
    let refused = streams.open(&mut client, Some(Arc::clone(&stage)), &holder(2)).await.unwrap_err();
    assert_eq!(refused.message(), "not the present one");
    streams.open(&mut client, Some(stage), &holder(3)).await.unwrap();

    let plan = StepPlan { epoch: 3, step: 7, ..StepPlan::default() };
    streams.send(plan.clone()).unwrap();
    assert_eq!(*seen.lock().unwrap(), [plan], "it is there at once");
    assert!(matches!(streams.next().await, (0, StageEvent::Report(found)) if found == report));
    assert!(matches!(streams.next().await, (0, StageEvent::Ended(why)) if why.message() == "it leaves"));
    let refused = streams.open(&mut client, None, &holder(4)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "without a door it would be called");
}
