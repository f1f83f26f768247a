//! Whole CDR messages through RustDDS's typed readers and writers, undecoded.

use rustdds::RepresentationIdentifier;
use rustdds::bytes::Bytes;
use rustdds::no_key::{Decode, DefaultDecoder, DeserializerAdapter, SerializerAdapter};

/// A message's bytes: encapsulation header and body.
#[derive(Debug, Clone)]
pub(super) struct Payload(pub(super) Vec<u8>);

/// The adapter RustDDS asks for; it copies and cannot fail.
#[derive(Debug)]
pub(super) struct AsIs;

#[derive(Debug, Clone)]
pub(super) struct Copy;

/// RustDDS drops what is not listed before we could refuse it in words.
const ENCODINGS: [RepresentationIdentifier; 13] = [
    RepresentationIdentifier::CDR_LE,
    RepresentationIdentifier::CDR_BE,
    RepresentationIdentifier::PL_CDR_LE,
    RepresentationIdentifier::PL_CDR_BE,
    RepresentationIdentifier::XML,
    RepresentationIdentifier::XCDR2_LE,
    RepresentationIdentifier::XCDR2_BE,
    RepresentationIdentifier::D_CDR2_LE,
    RepresentationIdentifier::D_CDR2_BE,
    RepresentationIdentifier::PL_XCDR2_LE,
    RepresentationIdentifier::PL_XCDR2_BE,
    RepresentationIdentifier::CDR2_LE,
    RepresentationIdentifier::CDR2_BE,
];

impl DeserializerAdapter<Payload> for AsIs {
    type Error = std::convert::Infallible;
    type Decoded = Payload;

    fn supported_encodings() -> &'static [RepresentationIdentifier] {
        &ENCODINGS
    }

    fn transform_decoded(decoded: Payload) -> Payload {
        decoded
    }
}

impl DefaultDecoder<Payload> for AsIs {
    type Decoder = Copy;
    const DECODER: Copy = Copy;
}

impl Decode<'_, Payload> for Copy {
    type Error = std::convert::Infallible;

    fn decode_bytes(self, body: &[u8], encoding: RepresentationIdentifier) -> Result<Payload, Self::Error> {
        let [high, low] = encoding.to_bytes();
        let mut message = Vec::with_capacity(4 + body.len());
        message.extend_from_slice(&[high, low, 0, 0]);
        message.extend_from_slice(body);
        Ok(Payload(message))
    }
}

impl SerializerAdapter<Payload> for AsIs {
    type Error = std::convert::Infallible;

    fn output_encoding() -> RepresentationIdentifier {
        RepresentationIdentifier::CDR_LE
    }

    /// The body; RustDDS writes the header that [`Self::output_encoding`] names.
    fn to_bytes(message: &Payload) -> Result<Bytes, Self::Error> {
        Ok(Bytes::copy_from_slice(message.0.get(4..).unwrap_or_default()))
    }
}
