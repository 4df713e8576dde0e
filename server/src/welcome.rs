//! What is said of a built-in model when it starts, so that nobody takes it for more than it is.

use engine::{BuiltIn, Engine, ModelSource};

/// What the built-in models among those of `sources` are and can do, and how to get another one, a line each. None if
/// no model is built in. `engines` belong to `sources`; `command` is the one that runs.
pub(crate) fn lines(sources: &[ModelSource], engines: &[Engine], command: &str) -> Vec<String> {
    let mut lines: Vec<String> = sources
        .iter()
        .zip(engines)
        .filter_map(|(source, engine)| match source {
            ModelSource::BuiltIn(model) => Some(describe(*model, engine)),
            _ => None,
        })
        .collect();
    let subject = match lines.len() {
        0 => return lines,
        1 => "it",
        _ => "each of them",
    };
    let has_other = lines.len() < sources.len();
    lines.push(format!("{subject} {}", BuiltIn::SKILLS));
    if !has_other {
        lines.push(format!(
            "for a real model: leapfrog {command} --model ORG/NAME (from the Hugging Face Hub), FOLDER or FILE.gguf"
        ));
    }
    lines
}

fn describe(model: BuiltIn, engine: &Engine) -> String {
    let info = engine.model();
    let millions = info.num_params as f64 / 1e6;
    let (name, summary, context) = (model.name(), model.summary(), info.context_len);
    format!(
        "{name} is {summary} with {millions:.1} million parameters and {context} tokens of context, built into this \
         program"
    )
}

#[cfg(test)]
mod tests {
    use engine::{
        EngineSettings,
        testing::{Rule, scripted},
    };

    use super::*;

    #[test]
    fn built_in_models_introduce_themselves() {
        let settings = EngineSettings { threads: Some(1), ..EngineSettings::default() };
        let engine = || Engine::start(scripted(Rule::Successor).unwrap(), settings.clone()).unwrap();
        let engines = [engine(), engine()];
        let (built_in, other) = (ModelSource::default(), ModelSource::Folder("x".into()));
        let name = BuiltIn::default().name();

        let told = lines(std::slice::from_ref(&built_in), &engines[..1], "serve");
        let [what, can, real] = &told[..] else { panic!("{told:?}") };
        assert!(what.starts_with(&format!("{name} is a")) && what.contains("2048 tokens of context"), "{what}");
        assert!(can.starts_with("it solves"), "{can}");
        assert!(real.contains("leapfrog serve --model "), "{real}");

        let told = lines(&[built_in.clone(), built_in.clone()], &engines, "run");
        assert!(told.len() == 4 && told[2].starts_with("each of them solves"), "{told:?}");
        assert_eq!(lines(&[other.clone(), built_in], &engines, "serve").len(), 2, "there is a real one already");
        assert!(lines(&[other], &engines[..1], "serve").is_empty());
    }
}
