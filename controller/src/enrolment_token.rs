//! The text of an enrolment token: `plt1.<id>.<secret>.<fingerprint of the authority>`, the last two in URL-safe base64.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pleach_domain::Digest;
use pleach_domain::id::TokenId;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::ControllerError;
use crate::random;

const PREFIX: &str = "plt1";
/// What a token must look like.
pub(crate) const EXPECTED: &str = "expected plt1.<id>.<secret>.<authority fingerprint>";

/// A token with its secret.
pub(crate) struct EnrolmentToken {
    /// Public half.
    pub(crate) id: TokenId,
    secret: Zeroizing<[u8; 32]>,
    authority: Digest,
}

impl EnrolmentToken {
    /// Makes a token that lets devices recognise this authority.
    pub(crate) fn generate(authority: Digest) -> Result<Self, ControllerError> {
        let id = random::hex::<6>()?.parse().map_err(|e| ControllerError::Random(format!("{e}")))?;
        Ok(Self { id, secret: Zeroizing::new(random::bytes()?), authority })
    }

    /// Reads a token's text; `None` when it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > 256 {
            return None;
        }
        let mut parts = text.trim().split('.');
        let (prefix, id, secret, authority) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if prefix != PREFIX || parts.next().is_some() {
            return None;
        }
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().map(Zeroizing::new);
        let secret: [u8; 32] = bytes(secret)?.as_slice().try_into().ok()?;
        Some(Self { id: id.parse().ok()?, secret: Zeroizing::new(secret), authority: Digest::from_slice(&bytes(authority)?).ok()? })
    }

    /// The text, to be shown once.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        let (secret, authority) = (URL_SAFE_NO_PAD.encode(*self.secret), URL_SAFE_NO_PAD.encode(self.authority.as_bytes()));
        Zeroizing::new(format!("{PREFIX}.{}.{secret}.{authority}", self.id))
    }

    /// What is stored of the secret.
    pub(crate) fn secret_sha256(&self) -> Digest {
        pleach_artifact::sha256(&*self.secret)
    }

    /// Whether the secret is the stored one; takes the same time for every secret.
    pub(crate) fn matches(&self, stored: &Digest) -> bool {
        self.secret_sha256().as_bytes().ct_eq(stored.as_bytes()).into()
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnrolmentToken({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let token = EnrolmentToken::generate(Digest::new([7; 32])).unwrap();
        let read = EnrolmentToken::parse(&token.to_text()).unwrap();
        assert_eq!(read.id, token.id);
        assert!(read.matches(&token.secret_sha256()) && !read.matches(&Digest::new([0; 32])));
        assert_eq!(format!("{read:?}"), format!("EnrolmentToken({})", token.id));
    }

    #[test]
    fn refuses_everything_else() {
        let text = EnrolmentToken::generate(Digest::new([7; 32])).unwrap().to_text();
        for bad in ["", "plt1", "plt1.a.b.c", &text[1..], &text[..text.len() - 2], &format!("{}.x", *text), &text.replace("plt1", "plt2")] {
            assert!(EnrolmentToken::parse(bad).is_none(), "{bad}");
        }
    }
}
