//! Key types, key files and key ids.

use pleach_trust::key::KeyValue;
use pleach_trust::{PublicKey, SigningKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};

use crate::fleet::key;

const MESSAGE: &[u8] = b"{\"signed\":1}";

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

fn public(keytype: &str, scheme: &str, public: String) -> PublicKey {
    let keyval = KeyValue { public, extra: Default::default() };
    PublicKey { keytype: keytype.into(), scheme: scheme.into(), keyval, extra: Default::default() }
}

#[test]
fn key_files_round_trip_and_hide_the_secret() {
    let key = SigningKey::generate().unwrap();
    let pem = key.to_pem().unwrap();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!(SigningKey::from_pem(&pem).unwrap().public_key(), key.public_key());
    let der = key.to_pkcs8_der().unwrap();
    assert_eq!(SigningKey::from_pkcs8_der(&der).unwrap().public_key(), key.public_key());
    assert_eq!(format!("{key:?}"), "SigningKey(..)");
    assert!(SigningKey::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
}

#[test]
fn ring_reads_our_key_files_and_signs_alike() {
    let key = key(7);
    let pair = Ed25519KeyPair::from_pkcs8(&key.to_pkcs8_der().unwrap()).unwrap();
    assert_eq!(pair.sign(MESSAGE).as_ref(), key.sign(MESSAGE));
    assert_eq!(pair.public_key().as_ref(), key.public_key().ed25519_bytes().unwrap());
}

#[test]
fn verifies_rfc_8032_test_2() {
    let seed = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
    let key = SigningKey::from_seed(&seed.try_into().unwrap());
    assert_eq!(key.public_key().keyval.public, "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
    let signature =
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
    assert_eq!(hex::encode(key.sign(&[0x72])), signature);
    assert!(key.public_key().verifies(&[0x72], &hex::decode(signature).unwrap()));
}

#[test]
fn refuses_ed25519_keys_of_small_order() {
    // The identity as key and commitment with s = 0 satisfies the cofactored equation for every message.
    let mut identity = [0; 32];
    identity[0] = 1;
    let signature = [identity, [0; 32]].concat();
    assert!(!PublicKey::ed25519(&identity).verifies(MESSAGE, &signature));
}

#[test]
fn key_ids_are_those_of_other_tuf_tools() {
    // As securesystemslib computes it: SHA-256 over the canonical JSON, spelled out here.
    let key = PublicKey::ed25519(&[0xab; 32]);
    let json = format!(r#"{{"keytype":"ed25519","keyval":{{"public":"{}"}},"scheme":"ed25519"}}"#, "ab".repeat(32));
    assert_eq!(key.key_id().unwrap().as_str(), pleach_trust::Sha256Digest::of(json.as_bytes()).to_string());
}

#[test]
fn verifies_ecdsa_p256_under_both_of_its_type_names() {
    let rng = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &rng).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &rng).unwrap();
    let signature = pair.sign(&rng, MESSAGE).unwrap();
    // SubjectPublicKeyInfo of id-ecPublicKey, prime256v1 (RFC 5480).
    let prefix = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
    let text = pem(&[&prefix, pair.public_key().as_ref()].concat());
    for keytype in ["ecdsa", "ecdsa-sha2-nistp256"] {
        let key = public(keytype, "ecdsa-sha2-nistp256", text.clone());
        assert!(key.verifies(MESSAGE, signature.as_ref()));
        assert!(!key.verifies(b"other", signature.as_ref()));
    }
    // Another curve's name (secp256k1) over the same point is refused.
    let other = hex::decode("3056301006072a8648ce3d020106052b8104000a034200").unwrap();
    let text = pem(&[&other, pair.public_key().as_ref()].concat());
    assert!(!public("ecdsa", "ecdsa-sha2-nistp256", text).verifies(MESSAGE, signature.as_ref()));
}

#[test]
fn verifies_rsa_pss_made_by_openssl() {
    let key = public("rsa", "rsassa-pss-sha256", include_str!("../data/rsa.pem").into());
    let signature = hex::decode(include_str!("../data/rsa-signature.hex").trim()).unwrap();
    assert!(key.verifies(MESSAGE, &signature));
    assert!(!key.verifies(b"other", &signature));
    assert!(!public("rsa", "rsa-pkcs1v15-sha256", key.keyval.public).verifies(MESSAGE, &signature));
}

#[test]
fn unknown_key_types_verify_nothing() {
    let known = key(3);
    let mut unknown = known.public_key();
    unknown.scheme = "ed448".into();
    assert!(!unknown.verifies(MESSAGE, &known.sign(MESSAGE)));
    assert!(unknown.key_id().is_ok());
}
