//! The independent judge of an answer: the `jsonschema` crate, which shares no code with what made the answer.

use serde_json::Value;

/// The judge of one schema.
#[derive(Debug)]
pub struct Judge {
    validator: jsonschema::Validator,
}

impl Judge {
    /// A judge that checks formats, too.
    ///
    /// # Errors
    /// Why the validator does not take the schema.
    #[expect(clippy::result_large_err, reason = "the validator's own error type, within")]
    pub fn new(schema: &Value) -> Result<Self, String> {
        let options =
            jsonschema::options().should_validate_formats(true).with_keyword("multipleOf", |_, step, _| {
                let step = hundred_millionths(step).unwrap_or(1);
                Ok(Box::new(ExactMultiple { step: step.max(1) }))
            });
        Ok(Self { validator: options.build(schema).map_err(|error| error.to_string())? })
    }

    /// The value, when `text` is JSON that the schema accepts.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, text: &[u8]) -> Result<Value, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
        let wrong = self.validator.iter_errors(&value).next();
        let wrong = wrong.map(|error| format!("{error} at {}", error.instance_path));
        wrong.map_or(Ok(value), Err)
    }
}

/// `multipleOf` in decimals: the validator's own divides in F64, where 4.19 is no multiple of 0.01.
struct ExactMultiple {
    step: i128,
}

/// A number with at most eight decimals.
fn hundred_millionths(number: &Value) -> Option<i128> {
    let text = number.to_string();
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    format!("{whole}{decimals:0<8}").parse().ok().filter(|_| decimals.len() <= 8)
}

impl jsonschema::Keyword for ExactMultiple {
    fn validate<'i>(
        &self,
        instance: &'i Value,
        location: &jsonschema::paths::LazyLocation<'_, '_>,
    ) -> Result<(), jsonschema::ValidationError<'i>> {
        if self.is_valid(instance) {
            return Ok(());
        }
        let place = jsonschema::paths::Location::new();
        Err(jsonschema::ValidationError::custom(place, location.into(), instance, "not a multiple"))
    }

    fn is_valid(&self, instance: &Value) -> bool {
        !instance.is_number() || hundred_millionths(instance).is_some_and(|number| number % self.step == 0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_tells_right_from_wrong_in_decimals() {
        let judge = Judge::new(&json!({"type": "number", "multipleOf": 0.01, "maximum": 5})).unwrap();
        assert_eq!(judge.check(b"4.19"), Ok(json!(4.19)));
        for wrong in ["4.195", "6", "\"4\"", "4.1,", ""] {
            assert!(judge.check(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
