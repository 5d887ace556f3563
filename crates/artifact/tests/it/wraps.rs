//! Wraps open on one device, for one bundle and one assignment; stored keys under one key and for one bundle.

use pleach_artifact::{
    ArtifactError, ContentKey, KeyEncryptionKey, SealingKey, SealingPublicKey, WrapContext, WrappedKey, sha256, unwrap, wrap,
};
use pleach_domain::id::ModelName;
use pleach_domain::{ClassId, DeviceId, Digest};

struct Context {
    device: DeviceId,
    bundle: Digest,
    model: ModelName,
    model_version: u64,
    class: ClassId,
    sequence: u64,
}

impl Context {
    fn new() -> Self {
        Self {
            device: "dev-1".parse().unwrap(),
            bundle: sha256(b"bundle"),
            model: "resnet".parse().unwrap(),
            model_version: 3,
            class: "camera".parse().unwrap(),
            sequence: 7,
        }
    }

    fn borrow(&self) -> WrapContext<'_> {
        let Self { device, bundle, model, model_version, class, sequence } = self;
        WrapContext { device, bundle, model, model_version: *model_version, class, sequence: *sequence }
    }
}

fn content_key(byte: u8) -> ContentKey {
    ContentKey::from_slice(&[byte; 32]).unwrap()
}

#[test]
fn a_wrap_opens_on_its_device_and_on_no_other_for_all_pairs() {
    let context = Context::new();
    let devices: Vec<SealingKey> = (0..6).map(|_| SealingKey::generate().unwrap()).collect();
    for (i, owner) in devices.iter().enumerate() {
        let wrapped = wrap(&content_key(i as u8), &owner.public_key().unwrap(), &context.borrow()).unwrap();
        for (j, device) in devices.iter().enumerate() {
            match unwrap(&wrapped, device, &context.borrow()) {
                Ok(key) => assert!(i == j && key == content_key(i as u8)),
                Err(error) => assert!(i != j && matches!(error, ArtifactError::Unwrap)),
            }
        }
    }
}

#[test]
fn a_wrap_opens_in_no_other_context() {
    let device = SealingKey::generate().unwrap();
    let wrapped = wrap(&content_key(1), &device.public_key().unwrap(), &Context::new().borrow()).unwrap();
    assert!(unwrap(&wrapped, &device, &Context::new().borrow()).is_ok());
    type Change = fn(&mut Context);
    let changes: [(&str, Change); 6] = [
        ("device", |c| c.device = "dev-2".parse().unwrap()),
        ("bundle", |c| c.bundle = sha256(b"other")),
        ("model", |c| c.model = "resne".parse().unwrap()),
        ("model_version", |c| c.model_version = 4),
        ("class", |c| c.class = "gateway".parse().unwrap()),
        ("sequence", |c| c.sequence = 8),
    ];
    for (field, change) in changes {
        let mut context = Context::new();
        change(&mut context);
        assert!(matches!(unwrap(&wrapped, &device, &context.borrow()), Err(ArtifactError::Unwrap)), "{field}");
    }
    // Two fields whose texts together read the same are still two fields.
    let mut shifted = Context::new();
    (shifted.model, shifted.class) = ("resnetc".parse().unwrap(), "amera".parse().unwrap());
    assert!(unwrap(&wrapped, &device, &shifted.borrow()).is_err());
}

#[test]
fn every_bit_flip_and_truncation_of_a_wrap_is_refused() {
    let context = Context::new();
    let device = SealingKey::generate().unwrap();
    let wrapped = wrap(&content_key(1), &device.public_key().unwrap(), &context.borrow()).unwrap();
    for bit in 0..wrapped.as_bytes().len() * 8 {
        let mut copy = *wrapped.as_bytes();
        copy[bit / 8] ^= 1 << (bit % 8);
        // RFC 7748 ignores the top bit of a coordinate; HPKE hashes it in, so that flip is refused too.
        assert!(unwrap(&WrappedKey::from_slice(&copy).unwrap(), &device, &context.borrow()).is_err(), "bit {bit}");
    }
    for end in 0..wrapped.as_bytes().len() {
        assert!(WrappedKey::from_slice(&wrapped.as_bytes()[..end]).is_err());
    }
}

#[test]
fn two_wraps_of_one_key_differ() {
    let context = Context::new();
    let public = SealingKey::generate().unwrap().public_key().unwrap();
    let wraps = [0, 1].map(|_| wrap(&content_key(1), &public, &context.borrow()).unwrap());
    assert_ne!(wraps[0], wraps[1]);
}

#[test]
fn a_public_key_of_low_order_is_refused() {
    let zero = SealingPublicKey::from_slice(&[0; 32]).unwrap();
    assert!(matches!(wrap(&content_key(1), &zero, &Context::new().borrow()), Err(ArtifactError::KeyForm { .. })));
}

#[test]
fn sealing_keys_round_trip_through_their_bytes() {
    let key = SealingKey::generate().unwrap();
    let again = SealingKey::from_slice(key.secret_bytes()).unwrap();
    assert_eq!(again.public_key().unwrap(), key.public_key().unwrap());
    assert!(SealingKey::from_slice(&[1; 31]).is_err());
    assert_eq!(format!("{key:?}"), "SealingKey(..)");
}

#[test]
fn a_stored_key_opens_for_its_bundle_only_and_unaltered_only() {
    let (kek, other) = (KeyEncryptionKey::generate().unwrap(), KeyEncryptionKey::generate().unwrap());
    let bundle = sha256(b"bundle");
    let stored = kek.encrypt(&content_key(9), &bundle).unwrap();
    assert_eq!(kek.decrypt(&stored, &bundle).unwrap(), content_key(9));
    assert!(kek.decrypt(&stored, &sha256(b"other")).is_err());
    assert!(other.decrypt(&stored, &bundle).is_err());
    for bit in 0..stored.len() * 8 {
        let mut copy = stored.clone();
        copy[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(kek.decrypt(&copy, &bundle), Err(ArtifactError::StoredKey { .. })));
    }
    for end in 0..stored.len() {
        assert!(kek.decrypt(&stored[..end], &bundle).is_err());
    }
    assert_ne!(kek.encrypt(&content_key(9), &bundle).unwrap(), stored);
}

/// The wrap comes from a second implementation of RFC 9180 and of `info`, in Python with its `cryptography` package:
/// ephemeral secret 01..20, recipient secret 65..84 (hexadecimal), content key 09 repeated.
#[test]
fn opens_a_wrap_that_another_implementation_made() {
    let wrapped = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c1f85a2fdca4b65645a8e112a77f5947d\
                   b5a864002c56da5efa66fc1fe156e1077c9d0a1ddc0692e0a6d343562dca4217";
    let wrapped = WrappedKey::from_slice(&hex::decode(wrapped).unwrap()).unwrap();
    let secret: Vec<u8> = (101..133).collect();
    let device = SealingKey::from_slice(&secret).unwrap();
    assert_eq!(unwrap(&wrapped, &device, &Context::new().borrow()).unwrap(), content_key(9));
}

/// RFC 9180, appendix A.1.1 (base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM), first encryption.
#[test]
fn the_hpke_beneath_answers_rfc_9180() {
    use hpke::Deserializable;
    use hpke::{aead::AesGcm128, kdf::HkdfSha256, kem::X25519HkdfSha256};
    let bytes = |text: &str| hex::decode(text).unwrap();
    let secret = bytes("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8");
    let encapped = bytes("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431");
    let sealed = bytes("f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a");
    let plain = hpke::single_shot_open::<AesGcm128, HkdfSha256, X25519HkdfSha256>(
        &hpke::OpModeR::Base,
        &Deserializable::from_bytes(&secret).unwrap(),
        &Deserializable::from_bytes(&encapped).unwrap(),
        &bytes("4f6465206f6e2061204772656369616e2055726e"),
        &sealed,
        b"Count-0",
    );
    assert_eq!(plain.unwrap(), b"Beauty is truth, truth beauty");
}
