//! A plan's steps at some moment of a run: parameters, conditions and texts with what is known.

use super::{Viewer, holds};
use crate::failure::Failure;
use crate::plan::{Known, Plan, PlannedStep, Rendered, Scope, schema};
use crate::record::event::Outputs;
use crate::secret::Redactor;
use crate::step::TypeInfo;
use crate::template::Templated;

impl Plan {
    /// The plan's outputs with what is known, those left out that can't be told.
    pub fn rendered_outputs(&self, known: &Known) -> Outputs {
        let viewer = Viewer { scope: &self.scope, item: None, known };
        let render = |template: &Templated| {
            let seen = viewer.see(template);
            if seen.is_known() { seen.value(template).ok() } else { None }
        };
        self.outputs.iter().filter_map(|(name, template)| Some((name.clone(), render(template)?))).collect()
    }
}

impl PlannedStep {
    fn viewer<'a>(&'a self, scope: &'a Scope, known: &'a Known) -> Viewer<'a> {
        Viewer { scope, item: self.item.as_ref(), known }
    }

    /// The scope of the parameters: that of the called plan for a `plan.run`, whose
    /// parameters are that plan's outputs.
    fn params_scope(&self) -> &Scope {
        self.called.as_deref().unwrap_or(&self.scope)
    }

    /// Renders the parameters with what is known; what isn't becomes a stand-in and is listed.
    ///
    /// # Errors
    /// When a value does not fit its parameter, or a template fails on the values.
    pub fn render(&self, known: &Known) -> Result<Rendered, Failure> {
        self.render_params(self.info, &self.params, self.params_scope(), known)
    }

    /// Renders the parameters of `undo` with what is known; none without `undo`.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_undo(&self, known: &Known) -> Result<Option<Rendered>, Failure> {
        let Some((info, params)) = &self.undo else { return Ok(None) };
        self.render_params(info, params, &self.scope, known).map(Some)
    }

    fn render_params(
        &self,
        info: &'static TypeInfo,
        params: &Templated,
        scope: &Scope,
        known: &Known,
    ) -> Result<Rendered, Failure> {
        let fail = |pointer: &str, message: &str| {
            let place = if pointer.is_empty() {
                "its parameters".to_owned()
            } else {
                format!("`{}`", pointer.trim_start_matches('/').replace('/', "."))
            };
            Failure::permanent(format!("step {}: {place}: {message}", self.id))
        };
        let (value, unknown) = if params.is_literal() {
            (params.source().clone(), Vec::new())
        } else {
            let seen = self.viewer(scope, known).see(params);
            let mut value = seen.value(params).map_err(|error| fail(&error.pointer, &error.message))?;
            // A called plan's outputs are whatever they are.
            let misfits = match &self.called {
                Some(_) => Vec::new(),
                None => schema::params_shape(info).fill(&mut value, &seen.holes(params)),
            };
            if let Some(misfit) = misfits.first() {
                return Err(fail(&misfit.pointer, &misfit.message));
            }
            (value, seen.unknown(params))
        };
        let step = (info.parse)(value).map_err(|error| fail(&error.pointer, &error.message))?;
        Ok(Rendered { step, unknown })
    }

    /// Whether `when` holds; `None` while it depends on outputs not known yet. True without `when`.
    ///
    /// # Errors
    /// When the condition fails on the values.
    pub fn holds(&self, known: &Known) -> Result<Option<bool>, Failure> {
        let mut all = Some(true);
        for guard in &self.when {
            let viewer = Viewer { scope: &guard.scope, item: guard.item.as_ref(), known };
            match holds(&guard.condition, viewer) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(Some(false)),
                Ok(None) => all = None,
                Err(error) => {
                    return Err(Failure::permanent(format!("step {}: `when`: {}", self.id, error.message)));
                }
            }
        }
        Ok(all)
    }

    /// A text of the step for people (`title`, `confirm`) with what is known, secrets hidden.
    ///
    /// # Errors
    /// When a template fails on the values.
    pub fn text(&self, template: &Templated, known: &Known, redactor: &Redactor) -> Result<String, Failure> {
        let value = self.viewer(&self.scope, known).see(template).value(template);
        let value = value.map_err(|error| {
            let message = format!("step {}: {}", self.id, error.message);
            Failure::permanent(redactor.redact(&message).into_owned())
        })?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(redactor.redact(&text).into_owned())
    }
}
