//! Where a storage is, and what keeps its objects below its root.
//!
//! A root may itself be a link. A link below it is followed only to what is below the root as well;
//! no plan makes links, so this guards against an operator's, not against somebody who swaps them
//! in between.

use std::path::Path;

use super::Storage;
use crate::failure::Failure;

impl Storage {
    /// Where it is: what tells it from storages elsewhere.
    pub fn place(&self) -> String {
        let info = self.operator.info();
        format!("{} {} {} {}", info.scheme(), self.endpoint.as_deref().unwrap_or(""), info.name(), info.root())
    }

    /// Whether a path names one object below the root, past all links.
    pub(super) fn check(&self, path: &str) -> Result<(), Failure> {
        check_path(path)?;
        let outside = self.folder.as_deref().and_then(|root| leads_out(root, path));
        outside.map_or(Ok(()), |link| {
            Err(Failure::permanent(format!(
                "`{path}` in the storage `{}`: the link `{link}` leads out of the storage's root, or nowhere",
                self.target
            ))
            .help("make the folder that it leads to the `root` of a storage of its own"))
        })
    }
}

/// The part of a path that is a link to something that is not below the root.
fn leads_out(root: &Path, path: &str) -> Option<String> {
    // Without a root there is nothing in it.
    let real_root = root.canonicalize().ok()?;
    let mut here = root.to_owned();
    for part in path.split('/') {
        here.push(part);
        let found = here.symlink_metadata().ok()?;
        if found.is_symlink() && !here.canonicalize().is_ok_and(|real| real.starts_with(&real_root)) {
            return Some(here.strip_prefix(root).unwrap_or(&here).display().to_string());
        }
    }
    None
}

/// Whether a path stays below a storage's root and names one object.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(path: &str) -> Result<(), Failure> {
    let wrong = |why: &str| {
        Err(Failure::permanent(format!("`{}` is not a path in a storage: {why}", path.escape_debug()))
            .help("write it relative to the storage's root, as `daily/auth.sql.gz`"))
    };
    if path.is_empty() {
        return wrong("it is empty");
    }
    if path.starts_with('/') {
        return wrong("it is absolute");
    }
    if path.chars().any(char::is_control) {
        return wrong("it holds a control character");
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return wrong("it has an empty part, `.` or `..`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::UploadOptions;
    use super::*;
    use crate::secret::Redactor;

    fn storage(root: &Path) -> Storage {
        let settings = serde_json::json!({ "scheme": "fs", "root": root });
        Storage::new("store", &serde_json::from_value(settings).unwrap(), Redactor::default()).unwrap()
    }

    #[tokio::test]
    async fn no_key_and_no_link_leads_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let (root, beside) = (folder.path().join("root"), folder.path().join("root-beside"));
        std::fs::create_dir_all(root.join("real")).unwrap();
        std::fs::create_dir(&beside).unwrap();
        std::fs::write(beside.join("secret"), "theirs").unwrap();
        symlink(&beside, root.join("out")).unwrap();
        symlink("../root-beside/secret", root.join("file")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        symlink("real", root.join("in")).unwrap();
        // The root itself may be a link.
        symlink(&root, folder.path().join("link")).unwrap();
        let options = UploadOptions { writer: "test", expected_bytes: 1, replace: true };
        for root in [root, folder.path().join("link")] {
            let store = storage(&root);
            let keys = [
                "../root-beside/secret",
                "/etc/passwd",
                "real/../../x",
                "out/secret",
                "file",
                "dangling",
                "in/../file",
            ];
            for key in keys {
                assert!(store.stat(key).await.is_err(), "stat {key}");
                assert!(store.read(key).await.is_err(), "read {key}");
                assert!(store.put(key, b"ours".to_vec(), options).await.is_err(), "put {key}");
                assert!(store.delete(key).await.is_err(), "delete {key}");
                assert!(store.local_path(key).is_err(), "local_path {key}");
            }
            let failure = store.stat("out/secret").await.unwrap_err();
            assert!(failure.message.contains("the link `out` leads out"), "{failure}");
            assert!(store.put("out/new", b"ours".to_vec(), options).await.is_err());
            store.put("in/object", b"ours".to_vec(), options).await.unwrap();
            assert_eq!(store.read_small("real/object", 9).await.unwrap().unwrap(), b"ours");
            assert!(store.list("out/").await.is_err());
        }
        let links = folder.path().join("links");
        std::fs::create_dir(&links).unwrap();
        symlink(beside.join("secret"), links.join("file")).unwrap();
        assert_eq!(storage(&links).list("").await.unwrap(), []);
        assert_eq!(std::fs::read_dir(&beside).unwrap().count(), 1);
        assert_eq!(std::fs::read_to_string(beside.join("secret")).unwrap(), "theirs");
    }
}
