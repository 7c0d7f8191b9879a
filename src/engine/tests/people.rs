//! Waiting for people: quorum, who may answer, silence, `confirm`, the terminal, other terminals.

use super::*;
use crate::record::store::Delivered;

fn asks(quorum: u32) -> Value {
    json!({ "asks": { "quorum": quorum, "by": [], "not_by_requester": false, "until": null } })
}

#[tokio::test]
async fn a_run_that_waits_stops_and_goes_on_when_answered() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let plan = plan(vec![
        step("ask", asks(2)),
        needing("after", json!({ "touch": touch }), &["ask"]),
        step("beside", json!({ "touch": touch })),
    ]);
    let ended = bench.run(&plan).await;
    assert_eq!((ended.state.status, ended.class().code()), (RunStatus::Waiting, 4));
    assert_eq!(lines(&touch), ["beside 1"], "all else goes on first");
    let folder = ended.folder;
    assert_eq!(folder.answer("ask", yes("maria"), Timestamp::now()).unwrap(), Delivered::Journaled);
    let twice = folder.answer("ask", yes("maria"), Timestamp::now()).unwrap_err();
    assert!(twice.to_string().contains("has answered it already"), "{twice}");
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!(ended.state.status, RunStatus::Waiting, "one of two");
    folder.answer("ask", yes("ben"), Timestamp::now()).unwrap();
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    assert_eq!(ended.state.step("ask").unwrap().outputs().unwrap().len(), 2);
    assert!(ended.state.waited > Duration::ZERO);
}

#[tokio::test]
async fn a_no_fails_the_step_and_resume_asks_again() {
    let bench = Bench::new();
    let plan = plan(vec![step("ask", asks(1))]);
    let folder = bench.run(&plan).await.folder;
    let no = Answer { approved: false, note: Some("too early".to_owned()), ..yes("maria") };
    folder.answer("ask", no, Timestamp::now()).unwrap();
    let ended = bench.resume(&plan, &folder).await;
    assert_eq!(failure(&ended, "ask"), "maria said no: too early");
    assert_eq!(bench.resume(&plan, &folder).await.state.status, RunStatus::Waiting);
}

#[tokio::test]
async fn only_those_asked_may_answer() {
    let bench = Bench::new();
    let me = bench.cx.by.user.clone();
    let params = json!({ "asks": { "quorum": 1, "by": ["maria", me], "not_by_requester": true, "until": null } });
    let folder = bench.run(&plan(vec![step("ask", params)])).await.folder;
    let stranger = folder.answer("ask", yes("eve"), Timestamp::now()).unwrap_err();
    assert!(stranger.to_string().contains("may not answer"), "{stranger}");
    let requester = folder.answer("ask", yes(&me), Timestamp::now()).unwrap_err();
    assert!(requester.to_string().contains("somebody else must answer"), "{requester}");
    folder.answer("ask", yes("maria"), Timestamp::now()).unwrap();
}

#[tokio::test]
async fn silence_is_a_no() {
    let bench = Bench::new();
    let until = Timestamp::now();
    let params = json!({ "asks": { "quorum": 1, "by": [], "not_by_requester": false, "until": until } });
    let plan = plan(vec![step("ask", params)]);
    let folder = bench.run(&plan).await.folder;
    let ended = bench.resume(&plan, &folder).await;
    let state = ended.state.step("ask").unwrap();
    assert!(
        matches!(&state.phase, Phase::Finished(Outcome::Failed { error }) if error.message.contains("silence is a no"))
    );
}

#[tokio::test]
async fn confirm_asks_before_the_step_acts_and_yes_answers_it() {
    let bench = Bench::new();
    let touch = bench.path("acts");
    let confirm = || Some(Templated::parse(json!("really?")).unwrap());
    let plan = plan(vec![PlannedStep { confirm: confirm(), ..step("a", json!({ "touch": touch })) }]);
    let ended = bench.run(&plan).await;
    assert_eq!((ended.state.status, lines(&touch).len()), (RunStatus::Waiting, 0));
    ended.folder.answer("a", yes("maria"), Timestamp::now()).unwrap();
    assert_eq!(bench.resume(&plan, &ended.folder).await.state.status, RunStatus::Succeeded);
    let all = RunOptions { yes: true, ..RunOptions::default() };
    let ended = run(&bench.cx, &plan, all.clone(), bench.console()).await.unwrap();
    assert_eq!((ended.state.status, lines(&touch).len()), (RunStatus::Succeeded, 2));
    let open = bench.run(&plan).await.folder;
    let ended = resume(&bench.cx, &plan, &open, all, bench.console()).await.unwrap();
    assert_eq!((ended.state.status, lines(&touch).len()), (RunStatus::Succeeded, 3));
}

#[tokio::test]
async fn yes_does_not_approve() {
    let bench = Bench::new();
    let options = RunOptions { yes: true, ..RunOptions::default() };
    let ended = run(&bench.cx, &plan(vec![step("ask", asks(1))]), options, bench.console()).await.unwrap();
    assert_eq!(ended.state.status, RunStatus::Waiting);
}

struct Terminal(Option<Answer>);

#[async_trait]
impl Asker for Terminal {
    async fn ask(&self, _step: &str, _question: &Question) -> Option<Answer> {
        self.0.clone()
    }
}

#[tokio::test]
async fn the_person_at_the_terminal_is_asked() {
    let bench = Bench::new();
    let console = |answer| Console { asker: Some(Arc::new(Terminal(answer))), ..bench.console() };
    let plan = plan(vec![step("ask", asks(1))]);
    let ended = run(&bench.cx, &plan, RunOptions::default(), console(Some(yes("maria")))).await.unwrap();
    assert_eq!(ended.state.status, RunStatus::Succeeded);
    let ended = run(&bench.cx, &plan, RunOptions::default(), console(None)).await.unwrap();
    assert_eq!(ended.state.status, RunStatus::Waiting);
}

#[tokio::test]
async fn an_answer_from_another_terminal_reaches_the_running_run() {
    let bench = Bench::new();
    let gate = bench.path("gate");
    let plan =
        plan(vec![step("ask", asks(1)), needing("b", json!({}), &["ask"]), step("long", json!({ "hang": true }))]);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let console = Console { controls: Some(receiver), ..bench.console() };
    let (cx, of_task) = (bench.cx.clone(), plan.clone());
    let task = tokio::spawn(async move { run(&cx, &of_task, RunOptions::default(), console).await });
    until(|| bench.seen.0.lock().unwrap().iter().any(|record| matches!(record.event, Event::StepWaiting { .. })))
        .await;
    let folder = bench.cx.store.find(None).unwrap();
    let delivered = folder.answer("ask", yes("maria"), Timestamp::now()).unwrap();
    assert!(
        matches!(&delivered, Delivered::Sent(Some(holder)) if holder.by.pid == std::process::id()),
        "{delivered:?}"
    );
    let finished = |record: &Record| matches!(&record.event, Event::StepFinished { step, .. } if step == "b");
    until(|| bench.seen.0.lock().unwrap().iter().any(finished)).await;
    sender.send(Control::Cancel).unwrap();
    task.await.unwrap().unwrap();
    assert!(folder.receive().unwrap().is_empty(), "what was taken in is removed");
    assert!(!gate.exists());
}

#[tokio::test]
async fn a_word_to_a_process_that_is_gone_stops_no_other_one() {
    let bench = Bench::new();
    let plan = plan(vec![step("ask", asks(1)), needing("after", json!({}), &["ask"])]);
    let folder = bench.run(&plan).await.folder;
    let pause = crate::record::inbox::Message::Pause { by: "maria".to_owned(), because: None };
    folder.send(&pause, Timestamp::now()).unwrap();
    folder.answer("ask", yes("maria"), Timestamp::now()).unwrap();
    assert_eq!(bench.resume(&plan, &folder).await.state.status, RunStatus::Succeeded);
    assert!(folder.receive().unwrap().is_empty());
}

#[tokio::test]
async fn a_run_that_was_called_off_gives_up_its_claim_and_can_go_on() {
    let bench = Bench::new();
    let waits = plan(vec![step("ask", asks(1)), needing("after", json!({ "destroys": "x" }), &["ask"])]);
    let folder = bench.run(&waits).await.folder;
    let other = plan(vec![step("a", json!({ "destroys": "x" }))]);
    let error = run(&bench.cx, &other, RunOptions::default(), bench.console()).await.unwrap_err();
    assert_eq!(error.class().code(), 5, "{error}");
    let now = Timestamp::now();
    assert_eq!(folder.call_off("maria".to_owned(), now).unwrap(), (RunStatus::Cancelled, true));
    assert_eq!(folder.call_off("maria".to_owned(), now).unwrap(), (RunStatus::Cancelled, false));
    assert_eq!(bench.run(&other).await.state.status, RunStatus::Succeeded);
    folder.answer("ask", yes("maria"), now).unwrap();
    assert_eq!(bench.resume(&waits, &folder).await.state.status, RunStatus::Succeeded);
}
