//! The testbed itself: a container runs, answers, is dumped by the bare runtime, and goes away.

#[macro_use]
mod support;

on_each_runtime!(bare_live_checkpoint, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    assert_eq!(container.status(), "running");

    let before = container.control("/data").status();
    assert_eq!(before["counter"], before["db_max"]);
    assert_eq!(before["log_size"], before["log_position"]);
    assert_eq!(before["second_position"], 10);
    assert_eq!(before["image_file"], "the image's own text\nchanged by the container\n");

    let images = bundle.images("images");
    let took = container.checkpoint(&images, &["--leave-running", "--file-locks"]).unwrap();
    println!("a bare live checkpoint of the journal: {took:?}");
    assert!(images.join("inventory.img").exists());
    assert!(!container.is_frozen());

    let after = container.control("/data").status();
    assert!(after["counter"].as_u64() >= before["counter"].as_u64());
    assert_eq!(after["db_check"], "ok");
});

// A runtime's own stop-mode checkpoint, and what it makes of it at once: files were not touched.
on_each_runtime!(bare_stop_and_restore, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let images = bundle.images("images");
    let container = bundle.run();
    container.wait_for("/data/ready");
    let before = container.control("/data").status();
    container.checkpoint(&images, &["--file-locks"]).unwrap();
    drop(container);

    let restored = bundle.restore(&images, &["--file-locks"]).unwrap();
    let after = restored.control("/data").status();
    assert!(after["counter"].as_u64() >= before["counter"].as_u64());
    assert_eq!(after["deleted_content"], before["deleted_content"]);
    assert_eq!(after["counter"], after["db_max"]);
});
