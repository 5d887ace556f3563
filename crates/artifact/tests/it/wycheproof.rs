//! Project Wycheproof's tricky inputs against what sealing and wrapping stand on: both ciphers, and X25519 inside HPKE.

use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, Serializable};
use pleach_artifact::{ContentKey, SealingKey, SealingPublicKey, WrapContext, WrappedKey, sha256, unwrap, wrap};
use ring::{aead, hmac};
use wycheproof::aead::{TestName, TestSet};
use wycheproof::{TestResult, xdh};

#[test]
fn both_ciphers_accept_and_refuse_as_wycheproof_says() {
    for (name, algorithm) in [(TestName::AesGcm, &aead::AES_256_GCM), (TestName::ChaCha20Poly1305, &aead::CHACHA20_POLY1305)] {
        let groups = TestSet::load(name).unwrap().test_groups;
        let ours = groups.iter().filter(|g| (g.key_size, g.nonce_size, g.tag_size) == (256, 96, 128));
        let (mut accepted, mut refused) = (0, 0);
        for test in ours.flat_map(|group| &group.tests) {
            let key = aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, &test.key).unwrap());
            let nonce = || aead::Nonce::try_assume_unique_for_key(&test.nonce).unwrap();
            let mut opened = [&test.ct[..], &test.tag[..]].concat();
            let plain = key.open_in_place(nonce(), aead::Aad::from(&test.aad[..]), &mut opened);
            match test.result {
                TestResult::Valid => {
                    assert_eq!(plain.unwrap(), &test.pt[..], "case {}", test.tc_id);
                    let mut sealed = test.pt.to_vec();
                    key.seal_in_place_append_tag(nonce(), aead::Aad::from(&test.aad[..]), &mut sealed).unwrap();
                    assert_eq!(sealed, [&test.ct[..], &test.tag[..]].concat(), "case {}", test.tc_id);
                    accepted += 1;
                }
                TestResult::Invalid => {
                    assert!(plain.is_err(), "case {}", test.tc_id);
                    refused += 1;
                }
                TestResult::Acceptable => {}
            }
        }
        assert!(accepted > 30 && refused > 20, "{accepted} and {refused}");
    }
}

/// The shared secret that DHKEM(X25519, HKDF-SHA256) makes of a Diffie-Hellman result (RFC 9180, section 4.1), with HKDF
/// (RFC 5869) spelled out.
fn kem_secret(dh: &[u8], encapped: &[u8], recipient: &[u8]) -> Vec<u8> {
    let suite = [b"KEM".as_slice(), &0x0020u16.to_be_bytes()].concat();
    let mac = |key: &[u8], parts: &[&[u8]]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &parts.concat()).as_ref().to_vec();
    let extracted = mac(&[0; 32], &[b"HPKE-v1", &suite, b"eae_prk", dh]);
    mac(&extracted, &[&32u16.to_be_bytes(), b"HPKE-v1", &suite, b"shared_secret", encapped, recipient, &[1]])
}

#[test]
fn the_key_exchange_beneath_a_wrap_computes_what_wycheproof_says_and_refuses_low_order() {
    let (device, model, class) = ("dev-1".parse().unwrap(), "resnet".parse().unwrap(), "camera".parse().unwrap());
    let bundle = sha256(b"bundle");
    let context = WrapContext { device: &device, bundle: &bundle, model: &model, model_version: 1, class: &class, sequence: 1 };
    let own = SealingKey::generate().unwrap();
    let content = ContentKey::from_slice(&[7; 32]).unwrap();
    let (mut computed, mut low_order) = (0, 0);
    for test in xdh::TestSet::load(xdh::TestName::X25519).unwrap().test_groups.into_iter().flat_map(|group| group.tests) {
        let Ok(public) = <[u8; 32]>::try_from(&test.public_key[..]) else { continue };
        let peer = SealingPublicKey::from_slice(&public).unwrap();
        if test.shared_secret.iter().all(|byte| *byte == 0) {
            assert!(wrap(&content, &peer, &context).is_err(), "case {}", test.tc_id);
            let forged = WrappedKey::from_slice(&[&public[..], &[0; 48]].concat()).unwrap();
            assert!(unwrap(&forged, &own, &context).is_err(), "case {}", test.tc_id);
            low_order += 1;
            continue;
        }
        assert!(wrap(&content, &peer, &context).is_ok(), "case {}", test.tc_id);
        let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&test.private_key).unwrap();
        let encapped = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&public).unwrap();
        let shared = X25519HkdfSha256::decap(&secret, None, &encapped).unwrap();
        let recipient = X25519HkdfSha256::sk_to_pk(&secret).to_bytes();
        assert_eq!(shared.0.to_vec(), kem_secret(&test.shared_secret, &public, &recipient), "case {}", test.tc_id);
        computed += 1;
    }
    assert!(computed > 300 && low_order > 10, "{computed} and {low_order}");
}
