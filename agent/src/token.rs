//! Enrolment tokens: `plt1.<token id>.<secret>.<SHA-256 of the authority's certificate>`, the last two base64url of 32 bytes.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pleach_domain::Digest;
use pleach_domain::id::TokenId;
use zeroize::Zeroizing;

use crate::error::AgentError;

/// Longest token text that is read, in bytes.
pub const MAX_TOKEN_BYTES: u64 = 1024;

/// A token as its holder has it.
pub struct Token {
    text: Zeroizing<String>,
    id: TokenId,
    authority: Digest,
}

impl Token {
    /// Parses the text of a token; white space around it is ignored.
    ///
    /// # Errors
    /// [`AgentError::Token`] says which part is malformed, and never repeats the text.
    pub fn parse(text: &str) -> Result<Self, AgentError> {
        let text = text.trim();
        if text.len() as u64 > MAX_TOKEN_BYTES {
            return Err(AgentError::Token("it is longer than 1024 bytes"));
        }
        let parts: Vec<&str> = text.split('.').collect();
        let &["plt1", id, secret, fingerprint] = parts.as_slice() else {
            return Err(AgentError::Token("expected four parts that begin with plt1"));
        };
        let id = id.parse().map_err(|_| AgentError::Token("the second part is not a token id"))?;
        let secret = URL_SAFE_NO_PAD.decode(secret).map(Zeroizing::new);
        if !secret.is_ok_and(|s| s.len() == 32) {
            return Err(AgentError::Token("the third part is not base64url of 32 bytes"));
        }
        let authority = URL_SAFE_NO_PAD.decode(fingerprint).ok().and_then(|f| Digest::from_slice(&f).ok());
        let authority = authority.ok_or(AgentError::Token("the fourth part is not base64url of 32 bytes"))?;
        Ok(Self { text: Zeroizing::new(text.to_owned()), id, authority })
    }

    /// The whole text, for the controller.
    pub fn secret_text(&self) -> &str {
        &self.text
    }

    /// The public half.
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// SHA-256 of the certificate of the authority that the controller must show.
    pub fn authority(&self) -> &Digest {
        &self.authority
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, ..)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_keeps_its_secret_to_itself() {
        let secret = URL_SAFE_NO_PAD.encode([7; 32]);
        let text = format!("plt1.t-1.{secret}.{}\n", URL_SAFE_NO_PAD.encode([9; 32]));
        let token = Token::parse(&text).unwrap();
        assert_eq!((token.id().as_str(), token.authority()), ("t-1", &Digest::new([9; 32])));
        assert_eq!(token.secret_text(), text.trim());
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn says_which_part_is_malformed() {
        let part = URL_SAFE_NO_PAD.encode([7; 32]);
        let words = |text: &str| Token::parse(text).unwrap_err().to_string();
        assert!(words("").contains("four parts"));
        assert!(words(&format!("plt2.a.{part}.{part}")).contains("four parts"));
        assert!(words(&format!("plt1.A.{part}.{part}")).contains("second"));
        assert!(words(&format!("plt1.a.{}.{part}", &part[..20])).contains("third"));
        assert!(words(&format!("plt1.a.{part}.x")).contains("fourth"));
        assert!(words(&"x".repeat(2000)).contains("longer"));
    }
}
