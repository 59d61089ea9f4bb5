//! Changes of workspaces of the `ns` mode.

use async_trait::async_trait;

use super::{NsProvider, error_of, to_its_end};
use crate::provider::changes::{Form, ShowChanges, ToldChanges};
use crate::provider::files::RawPath;
use crate::provider::{Error, OpenFile, WorkspaceId};
use crate::spawner::changes::protocol::Outcome;

#[async_trait]
impl ShowChanges for NsProvider {
    async fn changes(
        &self,
        id: &WorkspaceId,
        within: Option<RawPath>,
        form: Form,
    ) -> Result<ToldChanges, Error> {
        // Not to its end: who goes away waits no more.
        let place = self.workspaces.place_for_answer(id).await;
        let place = place.map_err(|error| error_of(error, ""))?;
        self.check_room()?;
        let (this, id, asked) = (self.clone(), id.clone(), within.clone());
        // What was held is let go of, whoever goes away.
        let told = to_its_end(async move {
            let told = this.workspaces.tell_changes(&id, within, form, place).await;
            told.map_err(|error| error_of(error, ""))
        })
        .await?;
        let path = asked.map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned());
        let path = path.unwrap_or_default();
        match told.answer.outcome {
            Outcome::Done => Ok(ToldChanges {
                content: OpenFile {
                    file: told.file,
                    size: told.answer.length,
                },
                left_out: told.answer.left_out,
                place: told.place,
            }),
            Outcome::NoSuchFile => Err(Error::NoSuchFile(match form {
                Form::Old => format!("there was no '{path}' after setup"),
                _ => format!("there is no '{path}'"),
            })),
            Outcome::Directory => Err(Error::NotAFile(format!("'{path}' is a directory"))),
            Outcome::NotRegular => Err(Error::NotRegular(format!(
                "'{path}' is a pipe, a socket or a device"
            ))),
            Outcome::TooLarge(most) => Err(Error::Invalid(format!(
                "the answer would be larger than {most} bytes; ask for a part of it with 'path'"
            ))),
            Outcome::TookTooLong(most) => Err(Error::Invalid(format!(
                "the answer would take longer than {most} s; ask for a part of it with 'path'"
            ))),
            Outcome::TookTooMuch(most) => Err(Error::Invalid(format!(
                "the answer would take more than {most} bytes of memory; ask for a part of it with 'path'"
            ))),
        }
    }
}
