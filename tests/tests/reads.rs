//! How many chunks somebody has read: each once, whoever reads it however often, and only what readers asked for.

use tests::{CHUNK, Home, Image, chunk};

fn read_so_far(home: &Home) -> [u64; 3] {
    let status = home.status("mnt");
    assert_eq!(status["chunks_read_exact"], true);
    let disk = |at: usize| status["disks"][at]["read"]["chunks"].as_u64().unwrap();
    [status["chunks_read"].as_u64().unwrap(), disk(0), disk(1)]
}

#[test]
fn fuse_status_counts_the_chunks_that_were_read_once_each_and_by_disk() {
    let home = Home::new("reads");
    Image::full(&home.path("a.img"), 300 * CHUNK);
    Image::full(&home.path("b.img"), 10 * CHUNK + 7);
    let disk = |name: &str| {
        let image = home.path(format!("{name}.img"));
        serde_json::json!({"name": name, "source": {"image": image}})
    };
    std::fs::write(home.path("note"), "plain").unwrap();
    let spec = serde_json::json!({
        "name": "two", "index": home.path("i"), "disks": [disk("a"), disk("b")],
        "files": [{"name": "note", "path": home.path("note")}],
    });
    std::fs::write(home.path("view.json"), spec.to_string()).unwrap();
    home.run("chunkfs mount --view view.json --index i mnt").failed(2, &["--index"]);
    home.run("chunkfs mount --view view.json mnt").ok();
    home.sh("ls -lR mnt >list; cat mnt/note mnt/*.b3/00/00/00/00/00/00/* >/dev/null").ok();
    assert_eq!(
        read_so_far(&home),
        [0, 0, 0],
        "the comparison, lists, digests and plain files are no reads of chunks"
    );
    home.run(&format!("head -c 1 mnt/a/{}", chunk(299))).ok();
    assert_eq!(read_so_far(&home), [1, 1, 0]);
    home.sh("find mnt/b -type f -exec cat {} + >/dev/null; dd if=mnt/b/00/00/00/00/00/00/00/0a bs=1 of=x")
        .ok();
    assert_eq!(read_so_far(&home), [12, 1, 11]);
    home.sh("cat mnt/b/00/00/00/00/00/00/00/00 mnt/a/00/00/00/00/00/00/00/05 >/dev/null").ok();
    assert_eq!(read_so_far(&home), [13, 2, 11]);
    let text = home.run("chunkfs status mnt").ok();
    assert!(text.contains("  a: 78643200 bytes, 300 chunks of 262144; 2 of them read\n"), "{text}");
    assert_eq!(home.status("mnt")["chunks"], 311);
    home.unmount();
    home.run("chunkfs mount --view view.json mnt").ok();
    assert_eq!(read_so_far(&home), [0, 0, 0], "of this view, and not of the one before");
}
